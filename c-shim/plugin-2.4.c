/* A user's settings and the end of notify on Dovecot 2.4. */
#include "plugin.h"
#include "settings.h"
#include "replication-settings.h"

void replication_shim_user_settings(struct mail_user *user,
				    struct replication_shim_user_settings *set_r)
{
	const struct replication_settings *set;
	const char *error;
	unsigned int i;

	i_zero(set_r);
	if (settings_get(user->event, &replication_setting_parser_info, 0,
			 &set, &error) < 0) {
		set_r->error = p_strdup(user->pool, error);
		return;
	}
	for (i = 0; i < REPLICATION_MAX_REPLICAS; i++) {
		if (*set->mail_replica[i] != '\0')
			set_r->has_replica = TRUE;
	}
	if (set->replication_sync_timeout > 0) {
		set_r->sync_timeout = p_strdup_printf(user->pool, "%u msecs",
			set->replication_sync_timeout);
	}
	settings_free(set);
}

void replication_shim_notify_unregister(struct notify_context *context)
{
	notify_unregister(&context);
}
