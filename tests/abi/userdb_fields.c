/* Reads a user's settings as a mail process of Dovecot 2.4 does, with the arguments (key=value) as the
   userdb's fields, and says what came out. Built with c-shim/settings.c and settings-2.4.c. */
#include "lib.h"
#include "net.h"
#include "settings.h"
#include "replication-settings.h"

#include <stdio.h>

int main(int argc, char *argv[])
{
	const struct replication_settings *set;
	static const char *const none[] = { NULL };
	struct settings_simple simple;
	const char *key, *value, *error;
	int i;

	lib_init();
	settings_simple_init(&simple, none);
	for (i = 1; i < argc; i++) {
		t_split_key_value_eq(argv[i], &key, &value);
		settings_override(simple.instance, key, value,
				  SETTINGS_OVERRIDE_TYPE_USERDB);
	}
	if (settings_get(simple.event, &replication_setting_parser_info, 0,
			 &set, &error) < 0)
		printf("error: %s\n", error);
	else {
		printf("mail_replica=%s mail_replica8=%s noreplicate=%s "
		       "replication_sync_timeout=%u\n",
		       set->mail_replica[0], set->mail_replica[7],
		       set->noreplicate ? "yes" : "no",
		       set->replication_sync_timeout);
		settings_free(set);
	}
	settings_simple_deinit(&simple);
	lib_deinit();
	return 0;
}
