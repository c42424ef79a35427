/* Our settings: one definition for Dovecot's configuration process (as
   lib10_replication_settings.so) and for the daemons. */
#ifndef REPLICATION_SETTINGS_H
#define REPLICATION_SETTINGS_H

struct replication_settings {
	unsigned int replication_sync_deadline;			/* seconds */
	unsigned int replication_retry_min_interval;		/* milliseconds */
	unsigned int replication_retry_max_interval;		/* seconds */
	unsigned int replication_probe_timeout;			/* milliseconds */
};

extern const struct setting_parser_info replication_setting_parser_info;

#endif
