#ifndef REPLICATION_DOVEADM_SHIM_H
#define REPLICATION_DOVEADM_SHIM_H

/* What the doveadm module needs of Dovecot that is a macro, an inline or takes varargs. No decisions here. */

#include "lib.h"
#include "array.h"
#include "istream-private.h"
#include "hostpid.h"
#include "ostream.h"
#include "log.h"
#include "mail-user.h"
#include "mail-storage-private.h"
#include "doveadm.h"
#include "doveadm-mail.h"
#include "doveadm-print.h"
#include "doveadm-settings.h"

struct iostream_private;
struct ssl_iostream;

typedef struct doveadm_mail_cmd_context *replication_mail_cmd_alloc_t(void);
typedef void replication_stream_close_t(struct iostream_private *stream, bool close_parent);

/* Puts this command among doveadm's, unless doveadm has one of its name: FALSE. */
bool replication_doveadm_register(const char *name, doveadm_command_ver2_t *run);

/* Makes the mail command allocate its context by another function; gives the one it had, or NULL if there is no such
   mail command. On 2.4 it also gets the options that it had on 2.3 and replication needs: -U, and sync -d. */
replication_mail_cmd_alloc_t *
replication_doveadm_replace_alloc(const char *name, replication_mail_cmd_alloc_t *alloc);

#if DOVECOT_VERSION_MAJOR > 2 || DOVECOT_VERSION_MINOR >= 4
/* For sync without a destination, in preinit: gives it one to be filled for each user. FALSE if it has one. */
bool replication_doveadm_leave_destination_open(struct doveadm_cmd_context *cctx);
/* Fills it with the user's mail_replica. 1 = done, 0 = the user has none, -1 = error. */
int replication_doveadm_fill_destination(struct doveadm_cmd_context *cctx,
					 struct mail_storage_service_user *user,
					 const char **error_r);
#else
/* Makes the stream close by another function; gives the one it had. */
replication_stream_close_t *
replication_doveadm_replace_close(struct ostream *stream, replication_stream_close_t *close);
/* The same, from within a close function. */
void replication_doveadm_restore_close(struct iostream_private *stream, replication_stream_close_t *close);
#endif

typedef ssize_t replication_stream_read_t(struct istream_private *stream);

struct istream_private *replication_doveadm_private(struct istream *stream);
/* Makes the stream read by another function; gives the one it had. */
replication_stream_read_t *
replication_doveadm_replace_read(struct istream_private *stream, replication_stream_read_t *read);
/* Whether an ioloop is at work: this is called from one of its callbacks, and not from what comes after it was stopped. */
bool replication_doveadm_is_in_ioloop(void);
struct ioloop_context;
typedef void replication_activate_t(void);
/* Calls back in front of each I/O callback of the context that the process is in, a user's, until replication_doveadm_inactive(). One at a
   time. NULL if it is in none. */
struct ioloop_context *replication_doveadm_on_activate(replication_activate_t *activate);
void replication_doveadm_inactive(struct ioloop_context *ctx);
/* Of the streams of which the current ioloop is asked to read the newest that may buffer any size, as dsync has it of its own; NULL if
   there is none. */
struct istream *replication_doveadm_newest_stream(void);
/* What was read and not yet taken. */
const unsigned char *replication_doveadm_buffered(struct istream_private *stream, size_t *size_r);

/* Whether it is dsync that works on the mailbox. */
bool replication_doveadm_is_dsync(struct mailbox *box);

/* Has dsync, for which this user is about to be synced, escape names by this character where it would by one of its own. Nothing where an admin
   has set one for any namespace, which must all have the same, or dsync knows none. */
void replication_doveadm_escape_names(struct mail_user *user, char escape_char);
/* Of each version: what an admin has set, '\0' if nothing. */
char replication_doveadm_escape_char(const struct mailbox_list *list);
void replication_doveadm_set_escape_char(struct mailbox_list *list, char escape_char);

/* Takes the mark of a deletion off the mailbox's index; whether there was one. Only with the mailbox list locked: who deletes keeps it
   locked from the mark to the end. The storage's last error stays. */
bool replication_doveadm_undelete(struct mailbox *box);

/* Whether the transaction saves mails, as dsync does before it expunges, in another transaction, those of which they are copies. */
bool replication_doveadm_saves_externally(struct mailbox_transaction_context *t);

/* Before the transaction, of an sdbox, is committed: the last save of it did not fail. */
void replication_doveadm_keep_saved(struct mailbox_transaction_context *t);

/* Takes the expunges out of an external transaction that is about to be committed, and asks for the same ones in a transaction of their own;
   NULL if there are none. */
struct mail_index_transaction *
replication_doveadm_take_expunges(struct mailbox_transaction_context *t);
/* After that: asks for them, or not if `commit` is not set; -1 on an error, which the index has logged. */
int replication_doveadm_expunge(struct mailbox *box, struct mail_index_transaction *expunges,
				bool commit);

/* A TLS client on a connected socket, with Dovecot's own settings and certificate checks: the same as of dsync. It waits for
   the peer, and runs no ioloop. */
struct replication_tls;
/* Makes the streams and shakes hands; NULL with an error that lives until the next call. The socket stays the caller's. */
struct replication_tls *
replication_doveadm_tls_open(struct doveadm_cmd_context *cctx, int fd, const char *host,
			     unsigned int timeout_msecs, const char **error_r);
/* How many bytes came; 0 at the end, -1 on an error, errno is set. ETIMEDOUT after this time without any. */
ssize_t replication_doveadm_tls_read(struct replication_tls *tls, void *data, size_t size,
				     unsigned int timeout_msecs);
/* Sends all; -1 on an error, errno is set. */
int replication_doveadm_tls_write(struct replication_tls *tls, const void *data, size_t size,
				  unsigned int timeout_msecs);
void replication_doveadm_tls_close(struct replication_tls *tls);
/* Of each version: puts TLS on the streams. */
int replication_doveadm_tls_create(struct doveadm_cmd_context *cctx, const char *host,
				   struct istream **input, struct ostream **output,
				   struct ssl_iostream **ssl_r, const char **error_r);

const char *replication_doveadm_username(struct mail_user *user);
/* Whether the user is marked noreplicate, globally or by userdb. */
bool replication_doveadm_noreplicate(struct mail_storage_service_user *user);

#endif
