//! From an LMTP delivery on one node to the mail in the user's Maildir on the other: stock and ours,
//! each with a cold and a warm doveadm service.
//!
//! Everything of a pair is one side's: plugin, aggregator, replicator. The mail is visible when its
//! file is in `new` or `cur` of the peer's INBOX.

use crate::clients::{Lmtp, message};
use crate::daemon_sides::{executables, link_executables};
use crate::node::{Home, Node, Side, VMAIL_NAME};
use crate::report::{Table, digits, line, ratio, seconds, with_interval};
use crate::statistics::{maximum, median, ratios};
use crate::{Outcome, Setup, in_turn, progress};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// So many that no user's last sync is still under way at its next mail.
const USERS: usize = 8;
const VISIBLE_LIMIT: Duration = Duration::from_secs(20);
const FIRST_LIMIT: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// Two nodes of one side.
struct Pair {
    side: Side,
    warm: bool,
    here: Node,
    there: Node,
    /// Seconds from the delivery's begin to the mail there, and to LMTP's answer.
    visible: Vec<f64>,
    answered: Vec<f64>,
    missing: usize,
}

fn user(number: usize) -> String {
    format!("user{}", number % USERS)
}

fn config(home: &Home, daemons: &[PathBuf; 2], warm: bool, port: u16, peer: u16) -> String {
    let dir = home.path.display();
    let [aggregator, replicator] = daemons.each_ref().map(|path| path.display());
    let service = if warm {
        "process_min_avail = 6\n  service_count = 0"
    } else {
        ""
    };
    format!(
        "\
mail_plugin_dir = {dir}/modules
mail_plugins = notify replication
protocols = lmtp
passdb {{
  driver = passwd-file
  args = {dir}/users
}}
userdb {{
  driver = passwd-file
  args = {dir}/users
}}
protocol lmtp {{
  postmaster_address = postmaster@example.org
}}
service auth {{
  unix_listener auth-userdb {{
    mode = 0600
    user = {VMAIL_NAME}
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
service replicator {{
  executable = {replicator}
  process_min_avail = 1
  unix_listener replicator-doveadm {{
    mode = 0666
  }}
}}
service aggregator {{
  executable = {aggregator}
  fifo_listener replication-notify-fifo {{
    user = {VMAIL_NAME}
  }}
  unix_listener replication-notify {{
    user = {VMAIL_NAME}
  }}
}}
dsync_remote_cmd = doveadm dsync-server -u%u
replication_max_conns = 10
service doveadm {{
  inet_listener {{
    port = {port}
  }}
  {service}
}}
doveadm_port = {port}
doveadm_password = bench
plugin {{
  mail_replica = tcp:127.0.0.1:{peer}
}}
",
    )
}

impl Pair {
    fn start(setup: &Setup, side: Side, warm: bool) -> Outcome<Pair> {
        // Free now; nothing else on this machine takes ports of its own choice meanwhile.
        let listeners = [
            TcpListener::bind("127.0.0.1:0")?,
            TcpListener::bind("127.0.0.1:0")?,
        ];
        let ports = [
            listeners[0].local_addr()?.port(),
            listeners[1].local_addr()?.port(),
        ];
        drop(listeners);
        let users: Vec<String> = (0..USERS).map(user).collect();
        let start = |name: &str, port: u16, peer: u16| -> Outcome<Node> {
            let kind = if warm { "warm" } else { "cold" };
            let home = Home::new(&setup.work, &format!("{}-{kind}-{name}", side.as_str()))?;
            home.link_modules(setup, side)?;
            home.write_users(&users)?;
            let daemons = link_executables(setup, side, &home)?;
            let config = config(&home, &daemons, warm, port, peer);
            home.start_installed(setup, side, &config)
        };
        let there = start("there", ports[1], ports[0])?;
        let here = start("here", ports[0], ports[1])?;
        let pair = Pair {
            side,
            warm,
            here,
            there,
            visible: Vec::new(),
            answered: Vec::new(),
            missing: 0,
        };
        // The peer has no mailbox before it gets one: two of one name would never come together.
        for number in 0..USERS {
            let (_, came) = pair.deliver(number, FIRST_LIMIT)?;
            if came.is_none() {
                return Err(format!("no first mail came:\n{}", pair.here.log()).into());
            }
        }
        Ok(pair)
    }

    fn inbox(&self, number: usize) -> PathBuf {
        self.there.path("mail").join(user(number)).join("Maildir")
    }

    /// One delivery: seconds until it was answered, and until it was visible.
    fn deliver(&self, number: usize, limit: Duration) -> Outcome<(f64, Option<f64>)> {
        let inbox = self.inbox(number);
        let before = mails(&inbox);
        let mut lmtp = Lmtp::connect(&self.here.path("run/lmtp"))?;
        let start = Instant::now();
        lmtp.deliver(&user(number), &message(&format!("e{number}")))?;
        let answered = start.elapsed().as_secs_f64();
        while start.elapsed() < limit {
            if mails(&inbox) > before {
                return Ok((answered, Some(start.elapsed().as_secs_f64())));
            }
            sleep(LOOK_INTERVAL);
        }
        Ok((answered, None))
    }

    fn measure(&mut self, round: usize) -> Outcome {
        let (answered, visible) = self.deliver(round, VISIBLE_LIMIT)?;
        self.answered.push(answered);
        // What did not come counts as the limit, so that medians and rounds stay honest.
        self.visible
            .push(visible.unwrap_or(VISIBLE_LIMIT.as_secs_f64()));
        self.missing += usize::from(visible.is_none());
        Ok(())
    }
}

fn mails(inbox: &Path) -> usize {
    let count = |sub: &str| fs::read_dir(inbox.join(sub)).map_or(0, Iterator::count);
    count("new") + count("cur")
}

/// Runs the rounds and prints the table.
///
/// # Errors
/// When a pair does not start, or refuses a delivery.
pub fn compare(setup: &Setup) -> Outcome {
    let mut pairs = Vec::new();
    for side in [Side::Stock, Side::Ours] {
        if let Err(missing) = executables(setup, side) {
            line(&format!(
                "\nend to end: {} left out: {missing}",
                side.as_str()
            ));
            continue;
        }
        for warm in [false, true] {
            progress(&format!("end to end: {}, warm: {warm}", side.as_str()));
            pairs.push(Pair::start(setup, side, warm)?);
        }
    }
    for round in 0..setup.deliveries {
        for pair in in_turn(&mut pairs, round) {
            pair.measure(round)?;
        }
    }

    let head = [
        "doveadm service",
        "side",
        "delivery to mail on the peer",
        "longest",
        "ratio to stock",
        "LMTP's answer",
        "not within 20 s",
    ];
    let mut table = Table::new(
        "End to end: LMTP delivery on one node, mail on the other",
        &head,
    );
    for warm in [false, true] {
        let of_kind = || pairs.iter().filter(|pair| pair.warm == warm);
        let stock = of_kind().find(|pair| pair.side == Side::Stock);
        for pair in of_kind() {
            let base = stock.map_or(&[][..], |stock| &stock.visible);
            table.row(vec![
                if warm { "warm" } else { "cold" }.to_owned(),
                pair.side.as_str().to_owned(),
                with_interval(&pair.visible, seconds),
                seconds(maximum(&pair.visible)),
                ratio(&ratios(&pair.visible, base)),
                seconds(median(&pair.answered)),
                digits(pair.missing as f64),
            ]);
        }
    }
    table.note(format!(
        "{} interleaved rounds of one delivery each, {USERS} users in turn; medians [95 % interval]; \
         warm: process_min_avail = 6, service_count = 0.",
        setup.deliveries
    ));
    table.print();
    Ok(())
}
