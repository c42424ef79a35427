/* Dovecot's log, without its varargs. Shared by all hosts. */
#ifndef REPLICATION_SHIM_LOG_H
#define REPLICATION_SHIM_LOG_H

enum replication_shim_level {
	REPLICATION_SHIM_DEBUG,
	REPLICATION_SHIM_INFO,
	REPLICATION_SHIM_WARNING,
	REPLICATION_SHIM_ERROR
};

void replication_shim_log(enum replication_shim_level level, const char *text);

#endif
