#include "lib.h"
#include "net.h"
#include "settings-parser.h"
#include "replication-settings.h"

static bool
replication_limits_range(const char *name, unsigned int value, const char *unit,
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

bool replication_limits_check(const struct replication_limits *limits,
			      pool_t pool, const char **error_r)
{
	if (!replication_limits_range("replication_sync_deadline",
			limits->replication_sync_deadline, "secs",
			10, 24*60*60, "10 secs to 1 day", pool, error_r) ||
	    !replication_limits_range("replication_retry_min_interval",
			limits->replication_retry_min_interval, "msecs",
			100, 60*1000, "100 msecs to 1 min", pool, error_r) ||
	    !replication_limits_range("replication_retry_max_interval",
			limits->replication_retry_max_interval, "secs",
			1, 24*60*60, "1 sec to 1 day", pool, error_r) ||
	    !replication_limits_range("replication_probe_timeout",
			limits->replication_probe_timeout, "msecs",
			100, 60*1000, "100 msecs to 1 min", pool, error_r))
		return FALSE;
	if (limits->replication_retry_min_interval >
	    limits->replication_retry_max_interval * 1000) {
		*error_r = p_strdup_printf(pool,
			"replication_retry_min_interval: %u msecs is longer than "
			"replication_retry_max_interval, expected at most %u secs",
			limits->replication_retry_min_interval,
			limits->replication_retry_max_interval);
		return FALSE;
	}
	return TRUE;
}
