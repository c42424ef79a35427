/* The doveadm module on Dovecot 2.3. */
#include "doveadm.h"
#include "ostream-private.h"
#include "iostream-private.h"
#include "iostream-ssl.h"
#include "mailbox-list-private.h"
#include "dsync-brain.h"

/* doveadm keeps its mail commands in doveadm_cmds_ver2; before 2.3.14 sync and dsync-server were in an array of their
   own, which later headers no longer declare. */
extern struct array replication_doveadm_mail_cmds __asm__("doveadm_mail_cmds") __attribute__((weak));

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

bool replication_doveadm_noreplicate(struct mail_storage_service_user *user)
{
	const struct mail_user_settings *set = mail_storage_service_user_get_set(user)[0];

	return mail_user_set_plugin_getenv_bool(set, "noreplicate");
}

int replication_doveadm_tls_create(struct doveadm_cmd_context *cctx, const char *host,
				   struct istream **input, struct ostream **output,
				   struct ssl_iostream **ssl_r, const char **error_r)
{
	struct ssl_iostream_settings set;
	struct ssl_iostream_context *ctx;
	int ret;

	doveadm_get_ssl_settings(&set, pool_datastack_create());
	if (ssl_iostream_client_context_cache_get(&set, &ctx, error_r) < 0)
		return -1;
	ret = io_stream_create_ssl_client(ctx, host, &set, input, output, ssl_r, error_r);
	ssl_iostream_context_unref(&ctx);
	return ret;
}

#ifdef DSYNC_LIST_CONTEXT
char replication_doveadm_escape_char(const struct mailbox_list *list)
{
	return list->set.vname_escape_char;
}

void replication_doveadm_set_escape_char(struct mailbox_list *list, char escape_char)
{
	list->set.vname_escape_char = escape_char;
}
#endif
