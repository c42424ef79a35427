/* The doveadm module on Dovecot 2.4. */
#include "doveadm.h"
#include "str.h"
#include "settings.h"
#include "var-expand.h"
#include "iostream-ssl.h"
#include "mailbox-list-private.h"
#include "replication-settings.h"

/* sync has about thirty. */
#define PARAMS_MAX 64

#define DESTINATION "destination"

struct replication_cmd {
	const char *name;
	const struct doveadm_cmd_param *stock_params;
	struct doveadm_cmd_param params[PARAMS_MAX];
};

static const struct doveadm_cmd_param replication_notify_param = {
	.short_opt = 'U', .name = "replicator-notify", .key = "replicator-notify", .type = CMD_PARAM_BOOL
};
static const struct doveadm_cmd_param replication_default_param = {
	.short_opt = 'd', .name = "default-destination", .key = "default-destination", .type = CMD_PARAM_BOOL
};

static struct replication_cmd replication_wrapped[] = {
	{ .name = "sync" },
	{ .name = "dsync-server" },
};

static struct replication_cmd *replication_cmd_find(const char *name)
{
	unsigned int i;

	for (i = 0; i < N_ELEMENTS(replication_wrapped); i++) {
		if (strcmp(replication_wrapped[i].name, name) == 0)
			return &replication_wrapped[i];
	}
	return NULL;
}

static bool
replication_cmd_has(const struct doveadm_cmd_ver2 *cmd, const struct doveadm_cmd_param *wanted)
{
	const struct doveadm_cmd_param *param;

	for (param = cmd->parameters; param->name != NULL; param++) {
		if (param->short_opt == wanted->short_opt)
			return TRUE;
	}
	return FALSE;
}

/* An option that the command has by itself stays as it is. */
static void
replication_cmd_add(struct doveadm_cmd_ver2 *cmd, struct replication_cmd *own,
		    const struct doveadm_cmd_param *param)
{
	unsigned int count = 0;

	while (cmd->parameters[count].name != NULL)
		count++;
	if (count + 2 > PARAMS_MAX || replication_cmd_has(cmd, param))
		return;
	memmove(own->params, cmd->parameters, count * sizeof(*param));
	own->params[count] = *param;
	i_zero(&own->params[count + 1]);
	cmd->parameters = own->params;
}

replication_mail_cmd_alloc_t *
replication_doveadm_replace_alloc(const char *name, replication_mail_cmd_alloc_t *alloc)
{
	struct replication_cmd *own = replication_cmd_find(name);
	struct doveadm_cmd_ver2 *cmd;

	array_foreach_modifiable(&doveadm_cmds_ver2, cmd) {
		if (strcmp(cmd->name, name) == 0 && cmd->mail_cmd != NULL && own != NULL) {
			replication_mail_cmd_alloc_t *orig = cmd->mail_cmd;

			cmd->mail_cmd = alloc;
			replication_cmd_add(cmd, own, &replication_notify_param);
			if (strcmp(name, "sync") == 0)
				replication_cmd_add(cmd, own, &replication_default_param);
			return orig;
		}
	}
	return NULL;
}

static struct doveadm_cmd_param *replication_destination(const struct doveadm_cmd_context *cctx)
{
	int i;

	for (i = 0; i < cctx->argc; i++) {
		if (strcmp(cctx->argv[i].name, DESTINATION) == 0 &&
		    cctx->argv[i].type == CMD_PARAM_ARRAY)
			/* an array of doveadm's own that it passes on as const */
			return (struct doveadm_cmd_param *)&cctx->argv[i];
	}
	return NULL;
}

bool replication_doveadm_leave_destination_open(struct doveadm_cmd_context *cctx)
{
	struct doveadm_cmd_param *param = replication_destination(cctx);
	const char *open = "";

	if (param == NULL || param->value_set)
		return FALSE;
	p_array_init(&param->value.v_array, cctx->pool, 2);
	array_push_back(&param->value.v_array, &open);
	array_append_zero(&param->value.v_array);
	array_pop_back(&param->value.v_array);
	param->value_set = TRUE;
	return TRUE;
}

int replication_doveadm_fill_destination(struct doveadm_cmd_context *cctx,
					 struct mail_storage_service_user *user,
					 const char **error_r)
{
	const struct replication_settings *set;
	struct doveadm_cmd_param *param = replication_destination(cctx);
	struct mail_storage_service_input input =
		*mail_storage_service_user_get_input(user);
	const char **destination;
	string_t *str;
	int ret;

	i_assert(param != NULL);
	if (settings_get(mail_storage_service_user_get_event(user),
			 &replication_setting_parser_info,
			 SETTINGS_GET_FLAG_NO_EXPAND, &set, error_r) < 0)
		return -1;
	str = t_str_new(128);
	ret = var_expand(str, set->mail_replica[0],
			 mail_storage_service_get_var_expand_params(
				mail_storage_service_user_get_service_ctx(user), &input),
			 error_r);
	settings_free(set);
	if (ret < 0)
		return -1;
	destination = array_front_modifiable(&param->value.v_array);
	*destination = p_strdup(cctx->pool, str_c(str));
	return str_len(str) > 0 ? 1 : 0;
}

bool replication_doveadm_noreplicate(struct mail_storage_service_user *user)
{
	const struct replication_settings *set;
	const char *error;
	bool noreplicate;

	if (settings_get(mail_storage_service_user_get_event(user),
			 &replication_setting_parser_info,
			 SETTINGS_GET_FLAG_NO_EXPAND, &set, &error) < 0) {
		i_error("%s", error);
		return FALSE;
	}
	noreplicate = set->noreplicate;
	settings_free(set);
	return noreplicate;
}

int replication_doveadm_tls_create(struct doveadm_cmd_context *cctx, const char *host,
				   struct istream **input, struct ostream **output,
				   struct ssl_iostream **ssl_r, const char **error_r)
{
	const struct ssl_iostream_client_autocreate_parameters parameters = {
		.event_parent = cctx->event,
		.host = host,
		.application_protocols = (const char *const[]) { "doveadm", NULL },
	};

	return io_stream_autocreate_ssl_client(&parameters, input, output, ssl_r, error_r);
}

char replication_doveadm_escape_char(const struct mailbox_list *list)
{
	return list->mail_set->mailbox_list_visible_escape_char[0];
}

void replication_doveadm_set_escape_char(struct mailbox_list *list, char escape_char)
{
	const struct mail_storage_settings *old_set = list->mail_set;
	struct mail_storage_settings *set;

	set = p_memdup(old_set->pool, old_set, sizeof(*old_set));
	set->mailbox_list_visible_escape_char =
		p_strndup(old_set->pool, &escape_char, sizeof(escape_char));
	list->mail_set = set;
}
