/* What the mail plugin names of Dovecot, weakly: where another release lacks one of them the plugin
   still loads, sees which Dovecot it is in, and steps aside before it uses any. Included in front of
   each file of the plugin's shim (build.rs); the plugin's Rust names nothing of Dovecot itself. */
#pragma weak array_idx_modifiable_i
#pragma weak array_idx_set_i
#pragma weak current_ioloop
#pragma weak e_debug
#pragma weak event_send_abort
#pragma weak event_want_level
#pragma weak i_debug
#pragma weak i_error
#pragma weak i_info
#pragma weak i_panic
#pragma weak i_warning
#pragma weak io_loop_get_root
#pragma weak mail_index_get_header
#pragma weak mail_storage_hooks_add
#pragma weak mail_storage_hooks_remove
#pragma weak mail_storage_module_register
#pragma weak mail_user_module_register
#pragma weak mail_user_plugin_getenv
#pragma weak mailbox_get_namespace
#pragma weak mailbox_get_path_to
#pragma weak notify_plugin_version
#pragma weak notify_register
#pragma weak notify_unregister
#pragma weak p_strconcat
#pragma weak p_strdup
#pragma weak p_strdup_printf
#pragma weak settings_get
#pragma weak t_pop
#pragma weak t_push
#pragma weak t_strconcat
#pragma weak t_strdup_printf
#pragma weak timeout_add_to
#pragma weak timeout_remove
