#include "lib.h"
#include "array.h"
#include "ioloop.h"
#include "restrict-access.h"
#include "settings-parser.h"
#include "master-service.h"
#include "master-service-settings.h"
#include "daemon.h"
#include "settings.h"

/* Roots of Dovecot's own, known to its configuration process by module name.
   Only the keys that are needed here; a key of another module's is ignored. */
struct aggregator_settings {
	const char *replicator_host;
	in_port_t replicator_port;
};

struct replicator_settings {
	const char *auth_socket_path;
	const char *doveadm_socket_path;
	const char *replication_dsync_parameters;
	unsigned int replication_full_sync_interval;
	unsigned int replication_max_conns;
};

struct doveadm_settings {
	const char *doveadm_password;
	in_port_t doveadm_port;
};

struct mail_plugin_settings {
	ARRAY(const char *) plugin_envs;
};

#define SETTING(struct_, type_, name_) \
	{ .type = (type_), .key = #name_, .offset = offsetof(struct struct_, name_) }
#define INFO(module_, struct_, defines_, defaults_) \
	{ .module_name = (module_), .defines = (defines_), \
	  .defaults = (defaults_), .type_offset = SIZE_MAX, \
	  .struct_size = sizeof(struct struct_), .parent_offset = SIZE_MAX }

static const struct setting_define aggregator_defines[] = {
	SETTING(aggregator_settings, SET_STR, replicator_host),
	SETTING(aggregator_settings, SET_IN_PORT, replicator_port),
	SETTING_DEFINE_LIST_END
};
static const struct aggregator_settings aggregator_defaults = {
	.replicator_host = "replicator",
};
static const struct setting_parser_info aggregator_info =
	INFO("aggregator", aggregator_settings, aggregator_defines,
	     &aggregator_defaults);

static const struct setting_define replicator_defines[] = {
	SETTING(replicator_settings, SET_STR, auth_socket_path),
	SETTING(replicator_settings, SET_STR, doveadm_socket_path),
	SETTING(replicator_settings, SET_STR, replication_dsync_parameters),
	SETTING(replicator_settings, SET_TIME, replication_full_sync_interval),
	SETTING(replicator_settings, SET_UINT, replication_max_conns),
	SETTING_DEFINE_LIST_END
};
static const struct replicator_settings replicator_defaults = {
	.auth_socket_path = "auth-userdb",
	.doveadm_socket_path = "doveadm-server",
	.replication_dsync_parameters = "-d -N -l 30 -U",
	.replication_full_sync_interval = 24*60*60,
	.replication_max_conns = 10,
};
static const struct setting_parser_info replicator_info =
	INFO("replicator", replicator_settings, replicator_defines,
	     &replicator_defaults);

static const struct setting_define doveadm_defines[] = {
	SETTING(doveadm_settings, SET_STR, doveadm_password),
	SETTING(doveadm_settings, SET_IN_PORT, doveadm_port),
	SETTING_DEFINE_LIST_END
};
static const struct doveadm_settings doveadm_defaults = {
	.doveadm_password = "",
};
static const struct setting_parser_info doveadm_info =
	INFO("doveadm", doveadm_settings, doveadm_defines, &doveadm_defaults);

static const struct setting_define mail_plugin_defines[] = {
	{ .type = SET_STRLIST, .key = "plugin",
	  .offset = offsetof(struct mail_plugin_settings, plugin_envs) },
	SETTING_DEFINE_LIST_END
};
static const struct mail_plugin_settings mail_plugin_defaults = {
	.plugin_envs = ARRAY_INIT,
};
static const struct setting_parser_info mail_plugin_info =
	INFO("mail", mail_plugin_settings, mail_plugin_defines,
	     &mail_plugin_defaults);

static const struct setting_parser_info *const roots[] = {
	&aggregator_info, &replicator_info, &doveadm_info, &mail_plugin_info,
	&replication_setting_parser_info, NULL
};

static const struct replication_shim_callbacks *shim_callbacks;
static const struct mail_plugin_settings *shim_plugin_settings;
static struct timeout *shim_timeout;

/* MASTER_SERVICE_FLAG_NO_IDLE_DIE would do the same without telling the
   master, which then logs that the process ignores it. */
static bool shim_idle_die(void)
{
	return FALSE;
}

int replication_shim_service_init(const char *name, int argc, char **argv)
{
	master_service = master_service_init(name, 0, &argc, &argv, "");
	master_service_set_idle_die_callback(master_service, shim_idle_die);
	return master_getopt(master_service) > 0 ? FATAL_DEFAULT : 0;
}

void replication_shim_service_settings(const char *module,
				       struct replication_shim_settings *set_r)
{
	struct master_service_settings_input input;
	struct master_service_settings_output output;
	const char *error;

	i_zero(&input);
	input.roots = roots;
	/* 2.3.13 cannot be asked for several modules */
	input.module = module;
	if (master_service_settings_read(master_service, &input, &output,
					 &error) < 0)
		i_fatal("Error reading configuration: %s", error);
	master_service_init_log(master_service);

	const struct master_service_settings *service =
		master_service_settings_get(master_service);
	void **sets = master_service_settings_get_others(master_service);
	const struct aggregator_settings *aggregator = sets[0];
	const struct replicator_settings *replicator = sets[1];
	const struct doveadm_settings *doveadm = sets[2];
	const struct replication_settings *ours = sets[4];

	shim_plugin_settings = sets[3];
	i_zero(set_r);
	set_r->base_dir = service->base_dir;
	set_r->state_dir = service->state_dir;
	set_r->replicator_host = aggregator->replicator_host;
	set_r->replicator_port = aggregator->replicator_port;
	set_r->auth_socket_path = replicator->auth_socket_path;
	set_r->doveadm_socket_path = replicator->doveadm_socket_path;
	set_r->doveadm_password = doveadm->doveadm_password;
	set_r->doveadm_port = doveadm->doveadm_port;
	set_r->replication_dsync_parameters =
		replicator->replication_dsync_parameters;
	set_r->replication_full_sync_interval_secs =
		replicator->replication_full_sync_interval;
	set_r->replication_max_conns = replicator->replication_max_conns;
	set_r->replication_sync_deadline_secs = ours->replication_sync_deadline;
	set_r->replication_retry_min_interval_msecs =
		ours->replication_retry_min_interval;
	set_r->replication_retry_max_interval_secs =
		ours->replication_retry_max_interval;
	set_r->replication_probe_timeout_msecs = ours->replication_probe_timeout;
}

const char *replication_shim_service_plugin_setting(const char *key)
{
	const char *const *envs;
	unsigned int i, count;

	if (!array_is_created(&shim_plugin_settings->plugin_envs))
		return NULL;
	envs = array_get(&shim_plugin_settings->plugin_envs, &count);
	for (i = 0; i + 1 < count; i += 2) {
		if (strcmp(envs[i], key) == 0)
			return envs[i + 1];
	}
	return NULL;
}

bool replication_shim_service_owner(unsigned int *uid_r, unsigned int *gid_r)
{
	struct restrict_access_settings set;

	restrict_access_get_env(&set);
	if (set.uid == (uid_t)-1)
		return FALSE;
	*uid_r = set.uid;
	*gid_r = set.gid == (gid_t)-1 ? getegid() : set.gid;
	return TRUE;
}

void replication_shim_service_start(void)
{
	restrict_access_by_env(RESTRICT_ACCESS_FLAG_ALLOW_ROOT, NULL);
	restrict_access_allow_coredumps(TRUE);
	master_service_init_finish(master_service);
}

static void shim_connected(struct master_service_connection *conn)
{
	master_service_client_connection_accept(conn);
	shim_callbacks->connected(conn->name, conn->fd, conn->fifo);
}

static void shim_ready(void *context ATTR_UNUSED)
{
	shim_callbacks->ready();
}

static void shim_timed_out(void *context ATTR_UNUSED)
{
	timeout_remove(&shim_timeout);
	shim_callbacks->timeout();
}

void replication_shim_service_run(const struct replication_shim_callbacks *callbacks,
				  int poll_fd)
{
	struct io *io;

	shim_callbacks = callbacks;
	io = io_add(poll_fd, IO_READ, shim_ready, NULL);
	master_service_run(master_service, shim_connected);
	io_remove(&io);
	timeout_remove(&shim_timeout);
	shim_callbacks = NULL;
}

void replication_shim_service_set_timeout(unsigned int msecs)
{
	timeout_remove(&shim_timeout);
	shim_timeout = timeout_add(msecs, shim_timed_out, NULL);
}

void replication_shim_service_clear_timeout(void)
{
	timeout_remove(&shim_timeout);
}

void replication_shim_service_client_gone(void)
{
	master_service_client_connection_destroyed(master_service);
}

void replication_shim_service_deinit(void)
{
	master_service_deinit(&master_service);
}
