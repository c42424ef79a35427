/* The settings of a service of Dovecot 2.4. */
#include "lib.h"
#include "net.h"
#include "hostpid.h"
#include "str.h"
#include "settings.h"
#include "var-expand.h"
#include "master-service.h"
#include "master-service-settings.h"
#include "daemon.h"
#include "replication-settings.h"

static const struct replication_settings *shim_user_settings;
static const struct replicator_settings *shim_replicator_settings;
static const struct aggregator_settings *shim_aggregator_settings;
static string_t *shim_expanded;

static const char *
shim_expand(const char *value, const char *username, const char **error_r)
{
	const struct var_expand_table table[] = {
		{ .key = "user", .value = username },
		{ .key = "owner_user", .value = username },
		{ .key = "hostname", .value = my_hostname },
		{ .key = "service", .value = "replicator" },
		{ .key = "protocol", .value = "replicator" },
		VAR_EXPAND_TABLE_END
	};
	const struct var_expand_params params = { .table = table };

	if (shim_expanded == NULL)
		shim_expanded = str_new(default_pool, 128);
	str_truncate(shim_expanded, 0);
	if (var_expand(shim_expanded, value, &params, error_r) < 0)
		return NULL;
	return str_c(shim_expanded);
}

static const char *shim_replica(const char *key)
{
	const struct setting_define *defines =
		replication_setting_parser_info.defines;
	unsigned int i;

	for (i = 0; i < REPLICATION_MAX_REPLICAS; i++) {
		if (strcmp(defines[i].key, key) == 0)
			return shim_user_settings->mail_replica[i];
	}
	return NULL;
}

static void shim_check_replicas(void)
{
	const char *error;
	unsigned int i;

	for (i = 0; i < REPLICATION_MAX_REPLICAS; i++) {
		if (shim_expand(shim_user_settings->mail_replica[i],
				"user@example.com", &error) == NULL)
			i_fatal("Error reading configuration: "
				"Failed to expand %s setting variables: %s",
				replication_setting_parser_info.defines[i].key,
				error);
	}
}

static void shim_read_aggregator(struct event *event,
				 struct replication_shim_settings *set_r)
{
	const char *error;

	if (settings_get(event, &aggregator_setting_parser_info, 0,
			 &shim_aggregator_settings, &error) < 0)
		i_fatal("Error reading configuration: %s", error);
	set_r->replicator_host = shim_aggregator_settings->replicator_host;
	set_r->replicator_port = shim_aggregator_settings->replicator_port;
}

static void shim_read_replicator(struct event *event,
				 struct replication_shim_settings *set_r)
{
	const struct replicator_settings *set;
	const char *error;

	/* a user's variables are expanded for each user */
	if (settings_get(event, &replication_setting_parser_info,
			 SETTINGS_GET_FLAG_NO_EXPAND, &shim_user_settings,
			 &error) < 0 ||
	    settings_get(event, &replicator_setting_parser_info, 0,
			 &shim_replicator_settings, &error) < 0)
		i_fatal("Error reading configuration: %s", error);
	shim_check_replicas();

	set = shim_replicator_settings;
	set_r->auth_socket_path = set->auth_socket_path;
	set_r->doveadm_socket_path = set->doveadm_socket_path;
	set_r->doveadm_password = set->doveadm_password;
	set_r->doveadm_port = set->doveadm_port;
	set_r->replication_dsync_parameters = set->replication_dsync_parameters;
	set_r->replication_full_sync_interval_secs =
		set->replication_full_sync_interval;
	set_r->replication_max_conns = set->replication_max_conns;
	set_r->replication_sync_deadline_secs =
		set->limits.replication_sync_deadline;
	set_r->replication_retry_min_interval_msecs =
		set->limits.replication_retry_min_interval;
	set_r->replication_retry_max_interval_secs =
		set->limits.replication_retry_max_interval;
	set_r->replication_probe_timeout_msecs =
		set->limits.replication_probe_timeout;
}

void replication_shim_service_settings(const char *module,
				       struct replication_shim_settings *set_r)
{
	const struct master_service_settings *service;
	struct event *event;
	const char *error;

	if (master_service_settings_read_simple(master_service, &error) < 0)
		i_fatal("Error reading configuration: %s", error);
	master_service_init_log(master_service);

	i_zero(set_r);
	service = master_service_get_service_settings(master_service);
	set_r->base_dir = service->base_dir;
	set_r->state_dir = service->state_dir;
	event = master_service_get_event(master_service);
	shim_read_aggregator(event, set_r);
	if (module == NULL)
		shim_read_replicator(event, set_r);
}

const char *replication_shim_service_user_setting(const char *key)
{
	if (shim_user_settings == NULL)
		return NULL;
	if (strcmp(key, "noreplicate") == 0)
		return shim_user_settings->noreplicate ? "yes" : NULL;
	return shim_replica(key);
}

const char *replication_shim_service_expand(const char *value,
					    const char *username)
{
	const char *error;

	/* that it can be expanded was seen at start */
	return shim_expand(value, username, &error);
}

void replication_shim_service_settings_free(void)
{
	str_free(&shim_expanded);
	settings_free(shim_user_settings);
	settings_free(shim_replicator_settings);
	settings_free(shim_aggregator_settings);
}
