/* What the configuration process of Dovecot 2.3 looks for in lib10_replication_settings.so. */
#include "lib.h"
#include "net.h"
#include "settings-parser.h"
#include "replication-settings.h"

#define EXPORT __attribute__((visibility("default")))

extern const char *replication_settings_version;
extern const struct setting_parser_info *replication_settings_set_roots[];

EXPORT const char *replication_settings_version = DOVECOT_ABI_VERSION;
EXPORT const struct setting_parser_info *replication_settings_set_roots[] = {
	&replication_setting_parser_info,
	NULL
};

/* By this mark `make install` and `make uninstall` know a file as ours; src/lib.rs has it for the others. */
static const char mark[] __attribute__((used)) = "dovecot-replication module";
