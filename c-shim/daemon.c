#include "lib.h"
#include "ioloop.h"
#include "restrict-access.h"
#include "master-service.h"
#include "daemon.h"

static const struct replication_shim_callbacks *shim_callbacks;
static struct timeout *shim_timeout;

/* MASTER_SERVICE_FLAG_NO_IDLE_DIE would do the same without telling the
   master, which then logs that the process ignores it. */
static bool shim_idle_die(void)
{
	return FALSE;
}

int replication_shim_service_init(const char *name, int argc, char **argv)
{
	master_service = master_service_init(name, 0, &argc, &argv, "");
	master_service_set_idle_die_callback(master_service, shim_idle_die);
	return master_getopt(master_service) > 0 ? FATAL_DEFAULT : 0;
}

bool replication_shim_service_owner(unsigned int *uid_r, unsigned int *gid_r)
{
	struct restrict_access_settings set;

	restrict_access_get_env(&set);
	if (set.uid == (uid_t)-1)
		return FALSE;
	*uid_r = set.uid;
	*gid_r = set.gid == (gid_t)-1 ? getegid() : set.gid;
	return TRUE;
}

void replication_shim_service_start(void)
{
	restrict_access_by_env(RESTRICT_ACCESS_FLAG_ALLOW_ROOT, NULL);
	restrict_access_allow_coredumps(TRUE);
	master_service_init_finish(master_service);
}

static void shim_connected(struct master_service_connection *conn)
{
	master_service_client_connection_accept(conn);
	shim_callbacks->connected(conn->name, conn->fd, conn->fifo);
}

static void shim_ready(void *context ATTR_UNUSED)
{
	shim_callbacks->ready();
}

static void shim_timed_out(void *context ATTR_UNUSED)
{
	timeout_remove(&shim_timeout);
	shim_callbacks->timeout();
}

void replication_shim_service_run(const struct replication_shim_callbacks *callbacks,
				  int poll_fd)
{
	struct io *io;

	shim_callbacks = callbacks;
	io = io_add(poll_fd, IO_READ, shim_ready, NULL);
	master_service_run(master_service, shim_connected);
	io_remove(&io);
	timeout_remove(&shim_timeout);
	shim_callbacks = NULL;
}

void replication_shim_service_set_timeout(unsigned int msecs)
{
	timeout_remove(&shim_timeout);
	shim_timeout = timeout_add(msecs, shim_timed_out, NULL);
}

void replication_shim_service_clear_timeout(void)
{
	timeout_remove(&shim_timeout);
}

void replication_shim_service_client_gone(void)
{
	master_service_client_connection_destroyed(master_service);
}

void replication_shim_service_deinit(void)
{
	replication_shim_service_settings_free();
	master_service_deinit(&master_service);
}
