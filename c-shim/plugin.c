#include "plugin.h"
#include "ioloop.h"
#include "mail-index.h"

#include <unistd.h>

#define REPLICATION_USER_CONTEXT(obj) \
	MODULE_CONTEXT(obj, replication_shim_user_module)

struct replication_shim_user {
	union mail_user_module_context module_ctx;
	void *context;
};

static MODULE_CONTEXT_DEFINE_INIT(replication_shim_user_module,
				  &mail_user_module_register);

#define REPLICATION_MAILBOX_CONTEXT(obj) \
	MODULE_CONTEXT(obj, replication_shim_mailbox_module)

static MODULE_CONTEXT_DEFINE_INIT(replication_shim_mailbox_module,
				  &mail_storage_module_register);

static const struct ReplicationCallbacks *shim_callbacks;

/* A plugin's own version, which Dovecot has compared with its own; no header
   has it. */
extern const char *notify_plugin_version;

const char *replication_shim_running_abi(void)
{
	return &notify_plugin_version == NULL ? NULL : notify_plugin_version;
}

bool replication_shim_can_log(void)
{
	return i_debug != NULL && i_info != NULL &&
		i_warning != NULL && i_error != NULL;
}

struct notify_context *
replication_shim_notify_register(const struct notify_vfuncs *vfuncs)
{
	return notify_register(vfuncs);
}

void replication_shim_storage_hooks_add(struct module *module,
					const struct mail_storage_hooks *hooks)
{
	mail_storage_hooks_add(module, hooks);
}

void replication_shim_storage_hooks_remove(const struct mail_storage_hooks *hooks)
{
	mail_storage_hooks_remove(hooks);
}

struct mail_namespace *
replication_shim_mailbox_namespace(const struct mailbox *box)
{
	return mailbox_get_namespace(box);
}

bool replication_shim_mailbox_is_inbox(const struct mailbox *box)
{
	return box->inbox_user;
}

bool replication_shim_mailbox_is_new_inbox(struct mailbox *box)
{
	const char *path;
	bool is_new;

	if (mail_index_get_header(box->view)->uid_validity != 0 ||
	    !box->inbox_user || strcmp(box->storage->name, "maildir") != 0)
		return FALSE;
	/* an index in memory, or one that was deleted, begins with none */
	T_BEGIN {
		is_new = mailbox_get_path_to(box, MAILBOX_LIST_PATH_TYPE_CONTROL, &path) > 0 &&
			access(t_strconcat(path, "/dovecot-uidlist", NULL), F_OK) < 0 &&
			errno == ENOENT;
	} T_END;
	return is_new;
}

bool replication_shim_mailbox_is_maildir(const struct mailbox *box)
{
	return strcmp(box->storage->name, "maildir") == 0;
}

const char *replication_shim_mailbox_path(struct mailbox *box)
{
	const char *path;

	return mailbox_get_path_to(box, MAILBOX_LIST_PATH_TYPE_MAILBOX, &path) > 0 ? path : NULL;
}

static int replication_shim_sync_deinit(struct mailbox_sync_context *ctx,
					struct mailbox_sync_status *status_r)
{
	struct mailbox *box = ctx->box;
	union mailbox_module_context *mctx = REPLICATION_MAILBOX_CONTEXT(box);
	int ret = mctx->super.sync_deinit(ctx, status_r);

	if (ret < 0)
		shim_callbacks->sync_failed(box);
	return ret;
}

void replication_shim_mailbox_watch_syncs(struct mailbox *box)
{
	struct mailbox_vfuncs *v = box->vlast;
	union mailbox_module_context *mctx =
		p_new(box->pool, union mailbox_module_context, 1);

	mctx->super = *v;
	box->vlast = &mctx->super;
	v->sync_deinit = replication_shim_sync_deinit;
	MODULE_CONTEXT_SET_SELF(box, replication_shim_mailbox_module, mctx);
}

void replication_shim_set_callbacks(const struct ReplicationCallbacks *callbacks)
{
	shim_callbacks = callbacks;
}

static void replication_shim_user_deinit(struct mail_user *user)
{
	struct replication_shim_user *ruser = REPLICATION_USER_CONTEXT(user);
	void *context = ruser->context;

	/* frees user and ruser; changes made on the way are still seen */
	ruser->module_ctx.super.deinit(user);
	shim_callbacks->user_deinit(context);
}

void replication_shim_user_attach(struct mail_user *user, void *context)
{
	struct mail_user_vfuncs *v = user->vlast;
	struct replication_shim_user *ruser;

	ruser = p_new(user->pool, struct replication_shim_user, 1);
	ruser->module_ctx.super = *v;
	ruser->context = context;
	user->vlast = &ruser->module_ctx.super;
	v->deinit = replication_shim_user_deinit;
	MODULE_CONTEXT_SET(user, replication_shim_user_module, ruser);
}

void *replication_shim_user_context(struct mail_user *user)
{
	struct replication_shim_user *ruser = REPLICATION_USER_CONTEXT(user);

	return ruser == NULL ? NULL : ruser->context;
}

const char *replication_shim_user_base_dir(struct mail_user *user)
{
	return user->set->base_dir;
}

bool replication_shim_user_wants_debug(struct mail_user *user)
{
	return event_want_debug(user->event);
}

void replication_shim_user_debug(struct mail_user *user, const char *text)
{
	e_debug(user->event, "%s", text);
}

static void replication_shim_retry(void *context ATTR_UNUSED)
{
	shim_callbacks->retry();
}

struct timeout *replication_shim_retry_timeout_add(unsigned int msecs)
{
	if (current_ioloop == NULL)
		return NULL;
	return timeout_add_to(io_loop_get_root(), msecs,
			      replication_shim_retry, (void *)NULL);
}

void replication_shim_timeout_remove(struct timeout *timeout)
{
	timeout_remove(&timeout);
}
