/* What the configuration process of Dovecot 2.4 looks for in
   lib10_replication_settings.so: our settings and our two services. */
#include "lib.h"
#include "array.h"
#include "net.h"
#include "settings-parser.h"
#include "service-settings.h"
#include "replication-settings.h"

#define EXPORT __attribute__((visibility("default")))

struct module;

extern const char *replication_settings_version;
extern const struct setting_parser_info *replication_settings_set_infos[];
extern const struct config_service replication_settings_services_array[];
void replication_settings_init(struct module *module);
void replication_settings_deinit(void);

/* In the programs doveconf and config. */
extern const struct setting_parser_info doveadm_setting_parser_info
	__attribute__((weak));

EXPORT const char *replication_settings_version = DOVECOT_ABI_VERSION;
EXPORT const struct setting_parser_info *replication_settings_set_infos[] = {
	&replication_setting_parser_info,
	&replicator_setting_parser_info,
	&aggregator_setting_parser_info,
	NULL
};

/* Name, modes and owners of the listeners are those of 2.3. Two readers of one
   fifo or two queues are never right, and an idle process is not ended: it
   would only be started again. */
static const struct service_settings aggregator_service_settings = {
	.name = "aggregator",
	.protocol = "",
	.type = "",
	.executable = "aggregator",
	.user = "$SET:default_internal_user",
	.group = "",
	.privileged_group = "",
	.extra_groups = ARRAY_INIT,
	.chroot = ".",

	.process_limit = 1,
	.idle_kill_interval = SET_TIME_INFINITE,

	.unix_listeners = ARRAY_INIT,
	.fifo_listeners = ARRAY_INIT,
	.inet_listeners = ARRAY_INIT,

	.process_limit_1 = TRUE,
};

static const struct setting_keyvalue aggregator_service_settings_defaults[] = {
	{ "unix_listener", "replication-notify" },

	{ "unix_listener/replication-notify/path", "replication-notify" },
	{ "unix_listener/replication-notify/mode", "0600" },

	{ "fifo_listener", "replication-notify-fifo" },

	{ "fifo_listener/replication-notify-fifo/path", "replication-notify-fifo" },
	{ "fifo_listener/replication-notify-fifo/mode", "0600" },

	{ NULL, NULL }
};

/* A million users need more than default_vsz_limit. */
static const struct service_settings replicator_service_settings = {
	.name = "replicator",
	.protocol = "",
	.type = "",
	.executable = "replicator",
	.user = "",
	.group = "",
	.privileged_group = "",
	.extra_groups = ARRAY_INIT,
	.chroot = "",

	.process_limit = 1,
	.idle_kill_interval = SET_TIME_INFINITE,
	.vsz_limit = SET_SIZE_UNLIMITED,

	.unix_listeners = ARRAY_INIT,
	.fifo_listeners = ARRAY_INIT,
	.inet_listeners = ARRAY_INIT,

	.process_limit_1 = TRUE,
};

static const struct setting_keyvalue replicator_service_settings_defaults[] = {
	{ "unix_listener", "replicator replicator-doveadm" },

	{ "unix_listener/replicator/path", "replicator" },
	{ "unix_listener/replicator/mode", "0600" },
	{ "unix_listener/replicator/user", "$SET:default_internal_user" },

	{ "unix_listener/replicator-doveadm/path", "replicator-doveadm" },
	{ "unix_listener/replicator-doveadm/mode", "0" },
	{ "unix_listener/replicator-doveadm/user", "$SET:default_internal_user" },

	{ NULL, NULL }
};

EXPORT const struct config_service replication_settings_services_array[] = {
	{ &aggregator_service_settings, aggregator_service_settings_defaults },
	{ &replicator_service_settings, replicator_service_settings_defaults },
	{ NULL, NULL }
};

EXPORT void replication_settings_init(struct module *module ATTR_UNUSED)
{
	if (&doveadm_setting_parser_info != NULL)
		replicator_settings_adopt(&doveadm_setting_parser_info);
}

EXPORT void replication_settings_deinit(void)
{
}

/* By this mark `make install` and `make uninstall` know a file as ours; src/lib.rs has it for the others. */
static const char mark[] __attribute__((used)) = "dovecot-replication module";
