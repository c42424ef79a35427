#include "doveadm.h"

#define SOCKET_PATH \
DOVEADM_CMD_PARAM('a', "socket-path", CMD_PARAM_STR, 0)
#define USER_MASK \
DOVEADM_CMD_PARAM('\0', "user-mask", CMD_PARAM_STR, CMD_PARAM_FLAG_POSITIONAL)
#define USER \
DOVEADM_CMD_PARAM('\0', "user", CMD_PARAM_STR, CMD_PARAM_FLAG_POSITIONAL)

/* Names, parameters and usages of those that 2.3 has are 2.3's. */
static struct doveadm_cmd_ver2 replication_cmds[] = {
{
	.name = "replicator status",
	.usage = "[-a <replicator socket path>] [<user mask>]",
DOVEADM_CMD_PARAMS_START
SOCKET_PATH
USER_MASK
DOVEADM_CMD_PARAMS_END
},
{
	.name = "replicator dsync-status",
	.usage = "[-a <replicator socket path>]",
DOVEADM_CMD_PARAMS_START
SOCKET_PATH
DOVEADM_CMD_PARAMS_END
},
{
	.name = "replicator replicate",
	.usage = "[-a <replicator socket path>] [-f] [-p <priority>] <user mask>",
DOVEADM_CMD_PARAMS_START
SOCKET_PATH
DOVEADM_CMD_PARAM('f', "full-sync", CMD_PARAM_BOOL, 0)
DOVEADM_CMD_PARAM('p', "priority", CMD_PARAM_STR, 0)
USER_MASK
DOVEADM_CMD_PARAMS_END
},
{
	.name = "replicator add",
	.usage = "[-a <replicator socket path>] <user mask>",
DOVEADM_CMD_PARAMS_START
SOCKET_PATH
USER_MASK
DOVEADM_CMD_PARAMS_END
},
{
	.name = "replicator remove",
	.usage = "[-a <replicator socket path>] <username>",
DOVEADM_CMD_PARAMS_START
SOCKET_PATH
USER
DOVEADM_CMD_PARAMS_END
},
{
	.name = "replicator show",
	.usage = "[-a <replicator socket path>] <user>",
DOVEADM_CMD_PARAMS_START
SOCKET_PATH
USER
DOVEADM_CMD_PARAMS_END
},
{
	.name = "replicator peers",
	.usage = "[-a <replicator socket path>]",
DOVEADM_CMD_PARAMS_START
SOCKET_PATH
DOVEADM_CMD_PARAMS_END
},
};

bool replication_doveadm_register(const char *name, doveadm_command_ver2_t *run)
{
	const struct doveadm_cmd_ver2 *known;
	unsigned int i;

	array_foreach(&doveadm_cmds_ver2, known) {
		if (strcmp(known->name, name) == 0)
			return FALSE;
	}
	for (i = 0; i < N_ELEMENTS(replication_cmds); i++) {
		if (strcmp(replication_cmds[i].name, name) == 0) {
			replication_cmds[i].cmd = run;
			doveadm_cmd_register_ver2(&replication_cmds[i]);
			return TRUE;
		}
	}
	i_unreached();
}

struct istream_private *replication_doveadm_private(struct istream *stream)
{
	return stream->real_stream;
}

replication_stream_read_t *
replication_doveadm_replace_read(struct istream_private *stream, replication_stream_read_t *read)
{
	replication_stream_read_t *orig = stream->read;

	stream->read = read;
	return orig;
}

const unsigned char *replication_doveadm_buffered(struct istream_private *stream, size_t *size_r)
{
	return i_stream_get_data(&stream->istream, size_r);
}

bool replication_doveadm_is_dsync(struct mailbox *box)
{
	return box->storage->user->dsyncing;
}

const char *replication_doveadm_username(struct mail_user *user)
{
	return user->username;
}
