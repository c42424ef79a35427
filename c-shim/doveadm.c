#include "doveadm.h"
#include "net.h"
#include "ioloop-private.h"
#include "iostream-ssl.h"
#include "mail-index-transaction-private.h"
#include "mail-namespace.h"
#include "mailbox-list-private.h"
#include "dbox-save.h"
#include "dsync-brain.h"

#include <poll.h>

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
	.name = "replicator verify",
	.usage = "[-a <replicator socket path>] [-f] [-x <mailbox mask> ...] [-p <peer location>] <user mask>",
DOVEADM_CMD_PARAMS_START
SOCKET_PATH
DOVEADM_CMD_PARAM('f', "full", CMD_PARAM_BOOL, 0)
DOVEADM_CMD_PARAM('x', "exclude-mailbox", CMD_PARAM_ARRAY, 0)
DOVEADM_CMD_PARAM('p', "peer", CMD_PARAM_STR, 0)
USER_MASK
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

static replication_activate_t *shim_activate;

static void shim_context_activate(void *context ATTR_UNUSED)
{
	shim_activate();
}

static void shim_context_deactivate(void *context ATTR_UNUSED)
{
}

bool replication_doveadm_is_in_ioloop(void)
{
	return current_ioloop != NULL && io_loop_is_running(current_ioloop);
}

struct ioloop_context *replication_doveadm_on_activate(replication_activate_t *activate)
{
	struct ioloop_context *ctx =
		current_ioloop == NULL ? NULL : io_loop_get_current_context(current_ioloop);

	if (ctx != NULL) {
		shim_activate = activate;
		io_loop_context_add_callbacks(ctx, shim_context_activate,
					      shim_context_deactivate, (void *)NULL);
	}
	return ctx;
}

void replication_doveadm_inactive(struct ioloop_context *ctx)
{
	io_loop_context_remove_callbacks(ctx, shim_context_activate,
					 shim_context_deactivate, (void *)NULL);
}

struct istream *replication_doveadm_newest_stream(void)
{
	struct io_file *io;

	for (io = current_ioloop->io_files; io != NULL; io = io->next) {
		if (io->istream != NULL &&
		    io->istream->real_stream->max_buffer_size == SIZE_MAX)
			return io->istream;
	}
	return NULL;
}

const unsigned char *replication_doveadm_buffered(struct istream_private *stream, size_t *size_r)
{
	return i_stream_get_data(&stream->istream, size_r);
}

bool replication_doveadm_is_dsync(struct mailbox *box)
{
	return box->storage->user->dsyncing;
}

#ifdef DSYNC_LIST_CONTEXT

#pragma weak dsync_mailbox_list_module

#define SHIM_LIST_CONTEXT(obj) MODULE_CONTEXT(obj, shim_list_module)

static MODULE_CONTEXT_DEFINE_INIT(shim_list_module, &mailbox_list_module_register);

/* dsync lists the mailboxes before it reads of the peer's. The character is its own still and not an admin's, so that it takes a separator
   in a peer's name for one that it has to replace. */
static struct mailbox_list_iterate_context *
shim_list_iter_init(struct mailbox_list *list, const char *const *patterns,
		    enum mailbox_list_iter_flags flags)
{
	union mailbox_list_module_context *lctx = SHIM_LIST_CONTEXT(list);
	struct dsync_mailbox_list *dlist = DSYNC_LIST_CONTEXT(list);

	list->v.iter_init = lctx->super.iter_init;
	if (dlist != NULL)
		dlist->have_orig_escape_char = FALSE;
	return list->v.iter_init(list, patterns, flags);
}

void replication_doveadm_escape_names(struct mail_user *user, char escape_char)
{
	union mailbox_list_module_context *lctx;
	struct mail_namespace *ns;

	if (&dsync_mailbox_list_module == NULL)
		return;
	for (ns = user->namespaces; ns != NULL; ns = ns->next) {
		if (replication_doveadm_escape_char(ns->list) != '\0')
			return;
	}
	for (ns = user->namespaces; ns != NULL; ns = ns->next) {
		replication_doveadm_set_escape_char(ns->list, escape_char);
		lctx = p_new(ns->list->pool, union mailbox_list_module_context, 1);
		lctx->super = ns->list->v;
		ns->list->v.iter_init = shim_list_iter_init;
		MODULE_CONTEXT_SET_SELF(ns->list, shim_list_module, lctx);
	}
}

#else

void replication_doveadm_escape_names(struct mail_user *user ATTR_UNUSED, char escape_char ATTR_UNUSED)
{
}

#endif

bool replication_doveadm_undelete(struct mailbox *box)
{
	bool undeleted = FALSE;

	mail_storage_last_error_push(box->storage);
	if (mailbox_open(box) < 0 && box->mailbox_deleted) {
		undeleted = mailbox_mark_index_deleted(box, FALSE) == 0;
		box->mailbox_deleted = FALSE;
	}
	mailbox_close(box);
	mail_storage_last_error_pop(box->storage);
	return undeleted;
}

bool replication_doveadm_saves_externally(struct mailbox_transaction_context *t)
{
	return (t->flags & MAILBOX_TRANSACTION_FLAG_EXTERNAL) != 0 && t->save_count > 0;
}

void replication_doveadm_keep_saved(struct mailbox_transaction_context *t)
{
	struct dbox_save_context *ctx;

	if (t->save_ctx == NULL)
		return;
	ctx = container_of(t->save_ctx, struct dbox_save_context, ctx);
	ctx->failed = FALSE;
}

struct mail_index_transaction *
replication_doveadm_take_expunges(struct mailbox_transaction_context *t)
{
	struct mail_index_transaction *expunges;
	const struct mail_transaction_expunge_guid *expunge;

	if ((t->flags & MAILBOX_TRANSACTION_FLAG_EXTERNAL) == 0 ||
	    !array_is_created(&t->itrans->expunges))
		return NULL;
	expunges = mail_index_transaction_begin(t->box->view, 0);
	/* Until the commit `uid` is a sequence number. */
	array_foreach(&t->itrans->expunges, expunge)
		mail_index_expunge_guid(expunges, expunge->uid, expunge->guid_128);
	array_free(&t->itrans->expunges);
	t->itrans->expunges_nonsorted = FALSE;
	return expunges;
}

int replication_doveadm_expunge(struct mailbox *box, struct mail_index_transaction *expunges,
				bool commit)
{
	if (!commit) {
		mail_index_transaction_rollback(&expunges);
		return 0;
	}
	if (mail_index_transaction_commit(&expunges) < 0) {
		mailbox_set_index_error(box);
		return -1;
	}
	return 0;
}

const char *replication_doveadm_username(struct mail_user *user)
{
	return user->username;
}

struct replication_tls {
	int fd;
	struct istream *input;
	struct ostream *output;
	struct ssl_iostream *ssl;
};

/* 1 = the socket is ready, 0 = time is over, -1 = error. Only right after a stream function that wanted more: any other
   in between may take what arrives into its own buffers, and the socket would stay silent. */
static int tls_wait(struct replication_tls *tls, unsigned int timeout_msecs)
{
	struct pollfd pfd = { .fd = tls->fd, .events = POLLIN };
	int ret;

	if (o_stream_get_buffer_used_size(tls->output) > 0)
		pfd.events |= POLLOUT;
	do {
		ret = poll(&pfd, 1, (int)timeout_msecs);
	} while (ret < 0 && errno == EINTR);
	if (ret == 0)
		errno = ETIMEDOUT;
	return ret;
}

struct replication_tls *
replication_doveadm_tls_open(struct doveadm_cmd_context *cctx, int fd, const char *host,
			     unsigned int timeout_msecs, const char **error_r)
{
	static char *last_error = NULL;
	struct replication_tls *tls = i_new(struct replication_tls, 1);
	const char *error = NULL;
	int ret;

	tls->fd = fd;
	net_set_nonblock(fd, TRUE);
	tls->input = i_stream_create_fd(fd, 64 * 1024);
	tls->output = o_stream_create_fd(fd, SIZE_MAX);
	o_stream_set_no_error_handling(tls->output, TRUE);
	if (replication_doveadm_tls_create(cctx, host, &tls->input, &tls->output,
					   &tls->ssl, &error) < 0) {
		ret = -1;
	} else {
		o_stream_set_no_error_handling(tls->output, TRUE);
		while ((ret = ssl_iostream_handshake(tls->ssl)) == 0) {
			if ((ret = tls_wait(tls, timeout_msecs)) <= 0)
				break;
		}
		if (ret == 0)
			error = "SSL handshake timed out";
		else if (ret < 0)
			error = ssl_iostream_get_last_error(tls->ssl);
	}
	if (ret > 0)
		return tls;
	i_free(last_error);
	last_error = i_strdup(error != NULL ? error : "SSL handshake failed");
	*error_r = last_error;
	replication_doveadm_tls_close(tls);
	return NULL;
}

ssize_t replication_doveadm_tls_read(struct replication_tls *tls, void *data, size_t size,
				     unsigned int timeout_msecs)
{
	const unsigned char *available;
	size_t length;
	ssize_t ret;

	for (;;) {
		available = i_stream_get_data(tls->input, &length);
		if (length > 0) {
			length = I_MIN(length, size);
			memcpy(data, available, length);
			i_stream_skip(tls->input, length);
			return (ssize_t)length;
		}
		ret = i_stream_read(tls->input);
		if (ret == 0)
			ret = tls_wait(tls, timeout_msecs) > 0 ? 1 : -3;
		if (ret == -3)
			return -1;
		if (ret < 0) {
			errno = tls->input->stream_errno;
			return errno == 0 ? 0 : -1;
		}
	}
}

int replication_doveadm_tls_write(struct replication_tls *tls, const void *data, size_t size,
				  unsigned int timeout_msecs)
{
	if (o_stream_send(tls->output, data, size) != (ssize_t)size) {
		errno = tls->output->stream_errno;
		return -1;
	}
	while (o_stream_flush(tls->output) >= 0) {
		if (o_stream_get_buffer_used_size(tls->output) == 0)
			return 0;
		if (tls_wait(tls, timeout_msecs) <= 0)
			return -1;
	}
	errno = tls->output->stream_errno;
	return -1;
}

void replication_doveadm_tls_close(struct replication_tls *tls)
{
	ssl_iostream_destroy(&tls->ssl);
	i_stream_destroy(&tls->input);
	o_stream_destroy(&tls->output);
	i_free(tls);
}
