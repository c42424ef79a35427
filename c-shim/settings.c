#include "lib.h"
#include "settings-parser.h"
#include "settings.h"

#define SETTING(type_, name_) \
	{ .type = (type_), .key = #name_, \
	  .offset = offsetof(struct replication_settings, name_) }

static const struct setting_define replication_setting_defines[] = {
	SETTING(SET_TIME, replication_sync_deadline),
	SETTING(SET_TIME_MSECS, replication_retry_min_interval),
	SETTING(SET_TIME, replication_retry_max_interval),
	SETTING(SET_TIME_MSECS, replication_probe_timeout),

	SETTING_DEFINE_LIST_END
};

static const struct replication_settings replication_default_settings = {
	.replication_sync_deadline = 10 * 60,
	.replication_retry_min_interval = 500,
	.replication_retry_max_interval = 5 * 60,
	.replication_probe_timeout = 5 * 1000,
};

static bool
replication_settings_range(const char *name, unsigned int value, const char *unit,
			   unsigned int min, unsigned int max,
			   const char *expected, pool_t pool,
			   const char **error_r)
{
	if (value >= min && value <= max)
		return TRUE;
	*error_r = p_strdup_printf(pool, "%s: %u %s is out of range, "
				   "expected a time from %s", name, value, unit,
				   expected);
	return FALSE;
}

static bool
replication_settings_check(void *set_, pool_t pool, const char **error_r)
{
	const struct replication_settings *set = set_;

	if (!replication_settings_range("replication_sync_deadline",
			set->replication_sync_deadline, "secs", 10, 24*60*60,
			"10 secs to 1 day", pool, error_r) ||
	    !replication_settings_range("replication_retry_min_interval",
			set->replication_retry_min_interval, "msecs",
			100, 60*1000, "100 msecs to 1 min", pool, error_r) ||
	    !replication_settings_range("replication_retry_max_interval",
			set->replication_retry_max_interval, "secs", 1, 24*60*60,
			"1 sec to 1 day", pool, error_r) ||
	    !replication_settings_range("replication_probe_timeout",
			set->replication_probe_timeout, "msecs", 100, 60*1000,
			"100 msecs to 1 min", pool, error_r))
		return FALSE;
	if (set->replication_retry_min_interval >
	    set->replication_retry_max_interval * 1000) {
		*error_r = p_strdup_printf(pool,
			"replication_retry_min_interval: %u msecs is longer than "
			"replication_retry_max_interval, expected at most %u secs",
			set->replication_retry_min_interval,
			set->replication_retry_max_interval);
		return FALSE;
	}
	return TRUE;
}

const struct setting_parser_info replication_setting_parser_info = {
	.module_name = "replication",
	.defines = replication_setting_defines,
	.defaults = &replication_default_settings,

	.type_offset = SIZE_MAX,
	.struct_size = sizeof(struct replication_settings),
	.parent_offset = SIZE_MAX,

	.check_func = replication_settings_check,
};
