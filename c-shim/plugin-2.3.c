/* A user's settings and the end of notify on Dovecot 2.3. */
#include "plugin.h"
#include "replication-settings.h"

static bool shim_has_replica(struct mail_user *user, const char *key)
{
	const char *value = mail_user_plugin_getenv(user, key);

	return value != NULL && *value != '\0';
}

void replication_shim_user_settings(struct mail_user *user,
				    struct replication_shim_user_settings *set_r)
{
	unsigned int i;

	i_zero(set_r);
	set_r->has_replica = shim_has_replica(user, "mail_replica");
	for (i = 2; i <= REPLICATION_MAX_REPLICAS && !set_r->has_replica; i++) T_BEGIN {
		set_r->has_replica = shim_has_replica(user,
			t_strdup_printf("mail_replica%u", i));
	} T_END;
	set_r->sync_timeout =
		mail_user_plugin_getenv(user, "replication_sync_timeout");
}

void replication_shim_notify_unregister(struct notify_context *context)
{
	notify_unregister(context);
}
