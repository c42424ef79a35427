#include "lib.h"
#include "net.h"
#include "settings-parser.h"
#include "replication-settings.h"

/* Rust has the same; tests/tree.rs compares. */
#define SYNC_TIMEOUT_MAX_SECS 3600
#define MAX_TARGET_BYTES 1024
#define MAX_CONNS 10000

#define SETTING(struct_, type_, name_) \
	{ .type = (type_), .key = #name_, .offset = offsetof(struct struct_, name_) }
#define LIMIT(type_, name_) \
	{ .type = (type_), .key = #name_, \
	  .offset = offsetof(struct replicator_settings, limits.name_) }
#define REPLICA(number_, key_) \
	{ .type = SET_STR, .key = (key_), \
	  .offset = offsetof(struct replication_settings, \
			     mail_replica[(number_) - 1]) }

static const struct setting_define replication_setting_defines[] = {
	REPLICA(1, "mail_replica"),
	REPLICA(2, "mail_replica2"),
	REPLICA(3, "mail_replica3"),
	REPLICA(4, "mail_replica4"),
	REPLICA(5, "mail_replica5"),
	REPLICA(6, "mail_replica6"),
	REPLICA(7, "mail_replica7"),
	REPLICA(8, "mail_replica8"),
	SETTING(replication_settings, SET_TIME_MSECS, replication_sync_timeout),
	SETTING(replication_settings, SET_BOOL, noreplicate),

	SETTING_DEFINE_LIST_END
};

static const struct replication_settings replication_default_settings = {
	.mail_replica = { "", "", "", "", "", "", "", "" },
	.replication_sync_timeout = 0,
	.noreplicate = FALSE,
};

/* 2.3 takes a bare number as seconds. */
static bool replication_timeout_lacks_unit(const char *value)
{
	return *value != '\0' && strspn(value, "0123456789") == strlen(value);
}

/* As mail_user_plugin_getenv_bool() of 2.3, where an empty value is yes. */
static const char *replication_bool_of_2_3(const char *value)
{
	return *value != '\0' && strchr("nN0fF", *value) != NULL ? "no" : "yes";
}

/* One userdb serves nodes of 2.3 and 2.4: its fields are taken as 2.3 takes
   them. Values in the configuration are left to Dovecot's own parser. */
static bool
replication_settings_apply(struct event *event ATTR_UNUSED, void *set_,
			   const char *key, const char **value,
			   enum setting_apply_flags flags,
			   const char **error_r ATTR_UNUSED)
{
	const struct replication_settings *set = set_;

	if ((flags & SETTING_APPLY_FLAG_OVERRIDE) == 0)
		return TRUE;
	if (strcmp(key, "noreplicate") == 0)
		*value = replication_bool_of_2_3(*value);
	else if (strcmp(key, "replication_sync_timeout") == 0) {
		if (**value == '\0')
			*value = "0";
		else if (replication_timeout_lacks_unit(*value))
			*value = p_strconcat(set->pool, *value, "s", NULL);
	} else if (strcmp(*value, "yes") == 0) {
		/* a field without a value takes the replica away */
		*value = "";
	}
	return TRUE;
}

static bool
replication_settings_check(void *set_, pool_t pool, const char **error_r)
{
	const struct replication_settings *set = set_;
	unsigned int i;

	for (i = 0; i < REPLICATION_MAX_REPLICAS; i++) {
		if (strlen(set->mail_replica[i]) > MAX_TARGET_BYTES) {
			*error_r = p_strdup_printf(pool,
				"%s: %.40s... is too long, expected at most %u bytes",
				replication_setting_defines[i].key,
				set->mail_replica[i], MAX_TARGET_BYTES);
			return FALSE;
		}
	}
	if (set->replication_sync_timeout > SYNC_TIMEOUT_MAX_SECS * 1000) {
		*error_r = p_strdup_printf(pool,
			"replication_sync_timeout: %u msecs is out of range, "
			"expected a time up to 1 hour, 0 is off",
			set->replication_sync_timeout);
		return FALSE;
	}
	return TRUE;
}

const struct setting_parser_info replication_setting_parser_info = {
	.name = "replication",

	.defines = replication_setting_defines,
	.defaults = &replication_default_settings,

	.struct_size = sizeof(struct replication_settings),
	.pool_offset1 = 1 + offsetof(struct replication_settings, pool),

	.setting_apply = replication_settings_apply,
	.check_func = replication_settings_check,
};

/* The first are core's. */
static struct setting_define replicator_setting_defines[] = {
	SETTING(replicator_settings, SET_STR, auth_socket_path),
	SETTING(replicator_settings, SET_STR, doveadm_socket_path),
	SETTING(replicator_settings, SET_STR, doveadm_password),
	SETTING(replicator_settings, SET_IN_PORT, doveadm_port),

	SETTING(replicator_settings, SET_STR, replication_dsync_parameters),
	SETTING(replicator_settings, SET_TIME, replication_full_sync_interval),
	SETTING(replicator_settings, SET_UINT, replication_max_conns),
	LIMIT(SET_TIME, replication_sync_deadline),
	LIMIT(SET_TIME_MSECS, replication_retry_min_interval),
	LIMIT(SET_TIME, replication_retry_max_interval),
	LIMIT(SET_TIME_MSECS, replication_probe_timeout),

	SETTING_DEFINE_LIST_END
};
#define REPLICATOR_CORE_SETTINGS 4

static struct replicator_settings replicator_default_settings = {
	.auth_socket_path = "auth-userdb",
	.doveadm_socket_path = "doveadm-server",
	.doveadm_password = "",
	.doveadm_port = 0,

	/* no -d and no -U: the replicator names the destination */
	.replication_dsync_parameters = "-N -l 30",
	.replication_full_sync_interval = 24*60*60,
	.replication_max_conns = 10,
	.limits = REPLICATION_DEFAULT_LIMITS,
};

static size_t replicator_setting_size(enum setting_type type)
{
	return type == SET_IN_PORT ? sizeof(in_port_t) : sizeof(const char *);
}

static void
replicator_setting_adopt(struct setting_define *def,
			 const struct setting_define *core_def,
			 const void *core_defaults)
{
	bool is_port = def->type == SET_IN_PORT;

	/* a string stays a string, though it may become one without variables */
	if (is_port != (core_def->type == SET_IN_PORT) ||
	    (!is_port && core_def->type != SET_STR &&
	     core_def->type != SET_STR_NOVARS))
		return;
	def->type = core_def->type;
	def->flags = core_def->flags;
	memcpy(PTR_OFFSET(&replicator_default_settings, def->offset),
	       CONST_PTR_OFFSET(core_defaults, core_def->offset),
	       replicator_setting_size(def->type));
}

void replicator_settings_adopt(const struct setting_parser_info *core)
{
	unsigned int i, j;

	for (i = 0; i < REPLICATOR_CORE_SETTINGS; i++) {
		struct setting_define *def = &replicator_setting_defines[i];

		for (j = 0; core->defines[j].key != NULL; j++) {
			if (strcmp(core->defines[j].key, def->key) == 0) {
				replicator_setting_adopt(def, &core->defines[j],
							 core->defaults);
				break;
			}
		}
	}
}

static bool
replicator_settings_check(void *set_, pool_t pool, const char **error_r)
{
	const struct replicator_settings *set = set_;

	if (set->replication_max_conns < 1 ||
	    set->replication_max_conns > MAX_CONNS) {
		*error_r = p_strdup_printf(pool,
			"replication_max_conns: %u is out of range, "
			"expected a number from 1 to %u",
			set->replication_max_conns, MAX_CONNS);
		return FALSE;
	}
	return replication_limits_check(&set->limits, pool, error_r);
}

const struct setting_parser_info replicator_setting_parser_info = {
	.name = "replicator",

	.defines = replicator_setting_defines,
	.defaults = &replicator_default_settings,

	.struct_size = sizeof(struct replicator_settings),
	.pool_offset1 = 1 + offsetof(struct replicator_settings, pool),

	.check_func = replicator_settings_check,
};

static const struct setting_define aggregator_setting_defines[] = {
	SETTING(aggregator_settings, SET_STR, replicator_host),
	SETTING(aggregator_settings, SET_IN_PORT, replicator_port),

	SETTING_DEFINE_LIST_END
};

static const struct aggregator_settings aggregator_default_settings = {
	.replicator_host = "replicator",
	.replicator_port = 0,
};

const struct setting_parser_info aggregator_setting_parser_info = {
	.name = "aggregator",

	.defines = aggregator_setting_defines,
	.defaults = &aggregator_default_settings,

	.struct_size = sizeof(struct aggregator_settings),
	.pool_offset1 = 1 + offsetof(struct aggregator_settings, pool),
};
