#include "doveadm.h"
#include "ostream-private.h"
#include "iostream-private.h"

/* doveadm keeps its mail commands in doveadm_cmds_ver2; before 2.3.14 sync and dsync-server were in an array of their
   own, which later headers no longer declare. */
extern struct array replication_doveadm_mail_cmds __asm__("doveadm_mail_cmds") __attribute__((weak));

static struct doveadm_cmd_ver2 replication_cmds[] = {
{
	.name = "replicator show",
	.usage = "[-a <replicator socket path>] <user>",
DOVEADM_CMD_PARAMS_START
DOVEADM_CMD_PARAM('a', "socket-path", CMD_PARAM_STR, 0)
DOVEADM_CMD_PARAM('\0', "user", CMD_PARAM_STR, CMD_PARAM_FLAG_POSITIONAL)
DOVEADM_CMD_PARAMS_END
},
{
	.name = "replicator peers",
	.usage = "[-a <replicator socket path>]",
DOVEADM_CMD_PARAMS_START
DOVEADM_CMD_PARAM('a', "socket-path", CMD_PARAM_STR, 0)
DOVEADM_CMD_PARAMS_END
},
};

void replication_doveadm_register(doveadm_command_ver2_t *show, doveadm_command_ver2_t *peers)
{
	replication_cmds[0].cmd = show;
	replication_cmds[1].cmd = peers;
	doveadm_cmd_register_ver2(&replication_cmds[0]);
	doveadm_cmd_register_ver2(&replication_cmds[1]);
}

static replication_mail_cmd_alloc_t *
replace_in_mail_cmds(const char *name, replication_mail_cmd_alloc_t *alloc)
{
	ARRAY(struct doveadm_mail_cmd) cmds;
	struct doveadm_mail_cmd *cmd;

	if (&replication_doveadm_mail_cmds == NULL)
		return NULL;
	cmds.arr = replication_doveadm_mail_cmds;
	array_foreach_modifiable(&cmds, cmd) {
		if (strcmp(cmd->name, name) == 0) {
			replication_mail_cmd_alloc_t *orig = cmd->alloc;
			cmd->alloc = alloc;
			return orig;
		}
	}
	return NULL;
}

replication_mail_cmd_alloc_t *
replication_doveadm_replace_alloc(const char *name, replication_mail_cmd_alloc_t *alloc)
{
	struct doveadm_cmd_ver2 *cmd;

	array_foreach_modifiable(&doveadm_cmds_ver2, cmd) {
		if (strcmp(cmd->name, name) == 0 && cmd->mail_cmd != NULL) {
			replication_mail_cmd_alloc_t *orig = cmd->mail_cmd;
			cmd->mail_cmd = alloc;
			return orig;
		}
	}
	return replace_in_mail_cmds(name, alloc);
}

replication_stream_close_t *
replication_doveadm_replace_close(struct ostream *stream, replication_stream_close_t *close)
{
	replication_stream_close_t *orig = stream->real_stream->iostream.close;

	stream->real_stream->iostream.close = close;
	return orig;
}

void replication_doveadm_restore_close(struct iostream_private *stream, replication_stream_close_t *close)
{
	stream->close = close;
}

const char *replication_doveadm_username(struct mail_user *user)
{
	return user->username;
}

bool replication_doveadm_noreplicate(struct mail_storage_service_user *user)
{
	const struct mail_user_settings *set = mail_storage_service_user_get_set(user)[0];

	return mail_user_set_plugin_getenv_bool(set, "noreplicate");
}
