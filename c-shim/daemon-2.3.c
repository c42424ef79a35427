/* The settings of a service of Dovecot 2.3. */
#include "lib.h"
#include "array.h"
#include "net.h"
#include "settings-parser.h"
#include "master-service.h"
#include "master-service-settings.h"
#include "daemon.h"
#include "replication-settings.h"

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

static const struct mail_plugin_settings *shim_plugin_settings;

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
	const struct replication_limits *ours = sets[4];

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

const char *replication_shim_service_user_setting(const char *key)
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

const char *replication_shim_service_expand(const char *value ATTR_UNUSED,
					    const char *username ATTR_UNUSED)
{
	return NULL;
}

void replication_shim_service_settings_free(void)
{
	shim_plugin_settings = NULL;
}
