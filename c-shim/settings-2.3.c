#include "lib.h"
#include "net.h"
#include "settings-parser.h"
#include "replication-settings.h"

#define SETTING(type_, name_) \
	{ .type = (type_), .key = #name_, \
	  .offset = offsetof(struct replication_limits, name_) }

static const struct setting_define replication_setting_defines[] = {
	SETTING(SET_TIME, replication_sync_deadline),
	SETTING(SET_TIME_MSECS, replication_retry_min_interval),
	SETTING(SET_TIME, replication_retry_max_interval),
	SETTING(SET_TIME_MSECS, replication_probe_timeout),

	SETTING_DEFINE_LIST_END
};

static const struct replication_limits replication_default_settings =
	REPLICATION_DEFAULT_LIMITS;

static bool
replication_settings_check(void *set, pool_t pool, const char **error_r)
{
	return replication_limits_check(set, pool, error_r);
}

const struct setting_parser_info replication_setting_parser_info = {
	.module_name = "replication",
	.defines = replication_setting_defines,
	.defaults = &replication_default_settings,

	.type_offset = SIZE_MAX,
	.struct_size = sizeof(struct replication_limits),
	.parent_offset = SIZE_MAX,

	.check_func = replication_settings_check,
};
