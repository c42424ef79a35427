/* Our settings: one definition for Dovecot's configuration process (as
   lib10_replication_settings.so) and for every process that reads them. */
#ifndef REPLICATION_SETTINGS_H
#define REPLICATION_SETTINGS_H

/* Rust has the same; tests/tree.rs compares. */
#define REPLICATION_MAX_REPLICAS 8

/* What only we have, on all versions. */
struct replication_limits {
	unsigned int replication_sync_deadline;			/* seconds */
	unsigned int replication_retry_min_interval;		/* milliseconds */
	unsigned int replication_retry_max_interval;		/* seconds */
	unsigned int replication_probe_timeout;			/* milliseconds */
};

#define REPLICATION_DEFAULT_LIMITS { \
	.replication_sync_deadline = 10 * 60, \
	.replication_retry_min_interval = 500, \
	.replication_retry_max_interval = 5 * 60, \
	.replication_probe_timeout = 5 * 1000, \
}

bool replication_limits_check(const struct replication_limits *limits,
			      pool_t pool, const char **error_r);

#if DOVECOT_VERSION_MAJOR > 2 || DOVECOT_VERSION_MINOR >= 4

/* A user's: read by the mail plugin for its user, by the replicator without one. */
struct replication_settings {
	pool_t pool;
	/* mail_replica, mail_replica2, ...; empty where there is none */
	const char *mail_replica[REPLICATION_MAX_REPLICAS];
	unsigned int replication_sync_timeout;			/* milliseconds */
	bool noreplicate;
};

struct replicator_settings {
	pool_t pool;
	/* core's, see replicator_settings_adopt() */
	const char *auth_socket_path;
	const char *doveadm_socket_path;
	const char *doveadm_password;
	in_port_t doveadm_port;

	const char *replication_dsync_parameters;
	unsigned int replication_full_sync_interval;		/* seconds */
	unsigned int replication_max_conns;
	struct replication_limits limits;
};

struct aggregator_settings {
	pool_t pool;
	const char *replicator_host;
	in_port_t replicator_port;
};

extern const struct setting_parser_info replication_setting_parser_info;
extern const struct setting_parser_info replicator_setting_parser_info;
extern const struct setting_parser_info aggregator_setting_parser_info;

/* Takes over how core defines the keys that are core's. Dovecot panics where
   two definitions of a key differ, and core's change between releases, so the
   configuration process calls this with core's before it looks at ours. */
void replicator_settings_adopt(const struct setting_parser_info *core);

#else

extern const struct setting_parser_info replication_setting_parser_info;

#endif

#endif
