/* What the mail plugin needs of Dovecot and cannot say in Rust: macros, inline
   functions, varargs and module contexts. No decision is made here. */
#ifndef REPLICATION_SHIM_PLUGIN_H
#define REPLICATION_SHIM_PLUGIN_H

#include "lib.h"
#include "mail-user.h"
#include "mail-namespace.h"
#include "mail-storage-private.h"
#include "mail-storage-hooks.h"
#include "notify-plugin.h"
#include "log.h"
#include "replication-callbacks.h"

struct module;
struct timeout;

/* The ABI version of the Dovecot that this process is, as its notify plugin has
   it; NULL if there is none. In another release than the headers' nothing else
   of this file but replication_shim_can_log() is called. */
const char *replication_shim_running_abi(void);
/* Whether replication_shim_log() has something to log to. */
bool replication_shim_can_log(void);

/* Dovecot's functions of these names. */
struct notify_context *
replication_shim_notify_register(const struct notify_vfuncs *vfuncs);
void replication_shim_notify_unregister(struct notify_context *context);
void replication_shim_storage_hooks_add(struct module *module,
					const struct mail_storage_hooks *hooks);
void replication_shim_storage_hooks_remove(const struct mail_storage_hooks *hooks);
struct mail_namespace *
replication_shim_mailbox_namespace(const struct mailbox *box);

/* Whether the mailbox, just opened, is the user's own INBOX in Maildir and has no
   UIDVALIDITY yet. One read of the open index unless so. */
bool replication_shim_mailbox_is_new_inbox(struct mailbox *box);
/* Whether the mailbox is the user's own INBOX. */
bool replication_shim_mailbox_is_inbox(const struct mailbox *box);

/* Whether the mailbox is a Maildir. */
bool replication_shim_mailbox_is_maildir(const struct mailbox *box);
/* Where it is; NULL if nowhere. Lives until the next call. */
const char *replication_shim_mailbox_path(struct mailbox *box);
/* For a mailbox just allocated: callbacks->sync_failed(box) is called after each
   sync that failed. */
void replication_shim_mailbox_watch_syncs(struct mailbox *box);

/* Whom the shim calls; valid until deinit. */
void replication_shim_set_callbacks(const struct ReplicationCallbacks *callbacks);

/* Ties context to the user: callbacks->user_deinit(context) is called once,
   after the user's other modules and the user itself have been deinitialized. */
void replication_shim_user_attach(struct mail_user *user, void *context);
/* The context of replication_shim_user_attach(), NULL if there is none. */
void *replication_shim_user_context(struct mail_user *user);

/* What a user's settings say of it; on 2.3 those of plugin {}, on both userdb
   fields win. Strings live as long as the user. */
struct replication_shim_user_settings {
	/* a mail_replica, mail_replica2, ... has a value */
	bool has_replica;
	/* as set, NULL if unset */
	const char *sync_timeout;
	/* why the settings cannot be read, NULL if they can (2.4) */
	const char *error;
};
void replication_shim_user_settings(struct mail_user *user,
				    struct replication_shim_user_settings *set_r);
const char *replication_shim_user_base_dir(struct mail_user *user);

bool replication_shim_user_wants_debug(struct mail_user *user);
void replication_shim_user_debug(struct mail_user *user, const char *text);

/* callbacks->retry() once after msecs, in the root ioloop: it outlives the
   ioloops that a command runs in between. NULL without any ioloop. */
struct timeout *replication_shim_retry_timeout_add(unsigned int msecs);
void replication_shim_timeout_remove(struct timeout *timeout);

#endif
