# What `make install`, `make uninstall` and the package's scripts share: POSIX sh, sourced by the Makefile
# and put at the head of each script of the package.

package=dovecot-replication

# Where a file of the distribution is while ours has its name. Dovecot loads every *.so of a directory, so
# the name must not end in that.
distrib() {
	echo "$1.distrib"
}

# Who has diverted the file: a package, LOCAL, or nobody.
diverted_by() {
	dpkg-divert --listpackage "$1"
}

# Says which lines of dovecot.conf Dovecot does not start or deliver with once our files are gone, and fails
# if there are any: in the words of `doveconf -N`, which has what is set to its default too. On 2.3 stock's
# files are back then, on 2.4 there is nothing.
named_in_conf() {
	case $1 in
		2.3) named='^ *replication_(sync_deadline|retry_min_interval|retry_max_interval|probe_timeout) *=' ;;
		*)
			named='^ *(mail_replica[2-8]?|noreplicate|replication_[a-z_]+|replicator_(host|port)) *='
			named="$named|^ *mail_plugins *=.*replication|^ +replication = yes|^ *service (aggregator|replicator) *[{]"
			;;
	esac
	command -v doveconf >/dev/null || return 0
	named=$(doveconf -N 2>/dev/null | grep -E "$named" || true)
	test -n "$named" || return 0
	echo "dovecot.conf names what is this project's; take these lines out first:" >&2
	echo "$named" >&2
	return 1
}
