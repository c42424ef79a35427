/* A Dovecot service process, without macros, inlines and varargs. */
#ifndef REPLICATION_SHIM_DAEMON_H
#define REPLICATION_SHIM_DAEMON_H

#include <stdbool.h>
#include "log.h"

struct replication_shim_settings {
	const char *base_dir;
	const char *state_dir;

	/* aggregator */
	const char *replicator_host;
	unsigned int replicator_port;

	/* replicator */
	const char *auth_socket_path;
	const char *doveadm_socket_path;
	const char *doveadm_password;
	unsigned int doveadm_port;
	const char *replication_dsync_parameters;
	unsigned int replication_full_sync_interval_secs;
	unsigned int replication_max_conns;

	/* ours */
	unsigned int replication_sync_deadline_secs;
	unsigned int replication_retry_min_interval_msecs;
	unsigned int replication_retry_max_interval_secs;
	unsigned int replication_probe_timeout_msecs;
};

struct replication_shim_callbacks {
	void (*connected)(const char *listener, int fd, bool fifo);
	void (*ready)(void);
	void (*timeout)(void);
};

/* Starts the service; argv must live as long as the process. Nonzero: exit
   with it. It does not end when the master would have idle processes end. */
int replication_shim_service_init(const char *name, int argc, char **argv);
/* Reads the settings of this module of Dovecot's (the others are defaults, or
   empty), or all if it is NULL, and starts logging. Does not return on error. */
void replication_shim_service_settings(const char *module,
				       struct replication_shim_settings *set_r);
/* A user's setting without a user: on 2.3 the value in plugin { }, on 2.4 that
   of the setting, with variables in it. NULL if it is not set. Valid until
   deinit. */
const char *replication_shim_service_user_setting(const char *key);
/* The value with 2.4's variables expanded for the user, valid until the next
   call; NULL if that fails. Not on 2.3. */
const char *replication_shim_service_expand(const char *value,
					    const char *username);
/* Called by replication_shim_service_deinit(). */
void replication_shim_service_settings_free(void);
/* Whom restrict() makes this process; FALSE if it stays who it is. */
bool replication_shim_service_owner(unsigned int *uid_r, unsigned int *gid_r);
/* Drops privileges, changes root, and tells the master that all is well. */
void replication_shim_service_start(void);

/* Runs until the master says stop. */
void replication_shim_service_run(const struct replication_shim_callbacks *callbacks,
				  int poll_fd);
/* Calls timeout() once after msecs, instead of what was set before. */
void replication_shim_service_set_timeout(unsigned int msecs);
void replication_shim_service_clear_timeout(void);
void replication_shim_service_client_gone(void);
void replication_shim_service_deinit(void);

#endif
