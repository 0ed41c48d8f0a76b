//! What a server says, or does not say, before anybody is logged in. Everything ends in time, and the error says what
//! was being waited for and what came instead.

use std::time::Duration;

use threadline::{Client, ClientBuilder, Error, Phase};

use super::{builder, client, outcome};
use crate::connect::PATIENCE;
use crate::rogue::{message, msg, Behaviour, Offer, Reader, Rogue};
use crate::util::within;

/// Long enough for an honest server on a busy machine to be past it, short enough for a test.
const LIMIT: Duration = Duration::from_millis(800);

fn error_of(builder: ClientBuilder) -> Error {
    match builder.connect() {
        Ok(client) => panic!("connected: {client:?}"),
        Err(error) => error,
    }
}

fn hasty(server: &Rogue) -> ClientBuilder {
    builder(server).handshake_timeout(LIMIT).auth_timeout(LIMIT)
}

#[test]
fn a_mute_server_is_given_up_waiting_for_its_banner() {
    within(PATIENCE, || {
        let error = error_of(hasty(&Rogue::mute()));
        assert!(matches!(error, Error::Timeout { phase: Phase::Banner, after: LIMIT, .. }), "{error:?}");
        assert_eq!(error.to_string(), "timed out after 0.8 s waiting for the server's banner");
    });
}

#[test]
fn the_limit_of_the_whole_connect_counts_too() {
    within(PATIENCE, || {
        let error = error_of(builder(&Rogue::mute()).timeout(LIMIT));
        assert!(matches!(error, Error::Timeout { phase: Phase::Banner, after: LIMIT, .. }), "{error:?}");
    });
}

#[test]
fn a_banner_of_a_byte_a_time_is_given_up() {
    within(PATIENCE, || {
        let error = error_of(hasty(&Rogue::slow_banner(Duration::from_millis(150))));
        assert!(matches!(error, Error::Timeout { phase: Phase::Banner, .. }), "{error:?}");
    });
}

#[test]
fn a_slow_banner_that_ends_in_time_is_waited_for() {
    within(PATIENCE, || {
        let server = Rogue::start(|conn| {
            conn.pause(Duration::from_millis(300))?;
            conn.handshake(&Offer::default())?;
            conn.accept_any_auth()?;
            conn.serve(&mut Behaviour::new())
        });
        assert!(client(&server).sh("true").status().expect("ran").success());
    });
}

#[test]
fn an_http_server_is_recognised() {
    within(PATIENCE, || {
        let error = error_of(builder(&Rogue::http()));
        assert!(matches!(error, Error::Handshake { phase: Phase::Banner, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("it is no SSH server, it said 'HTTP/1.1 400 Bad Request'"), "{text}");
    });
}

#[test]
fn floods_before_the_banner_are_cut_off() {
    within(PATIENCE, || {
        for (name, server) in
            [("lines", Rogue::banner_flood()), ("one line", Rogue::endless_line()), ("noise", Rogue::garbage())]
        {
            let error = error_of(hasty(&server));
            assert!(matches!(error, Error::Handshake { phase: Phase::Banner, .. }), "{name}: {error:?}");
            let text = error.to_string();
            assert!(text.contains("it is no SSH server, it said '"), "{name}: {text}");
            assert!(!text.chars().any(char::is_control) && text.len() < 600, "{name}: {text}");
        }
    });
}

#[test]
fn a_server_that_closes_at_once_is_no_riddle() {
    within(PATIENCE, || {
        let error = error_of(builder(&Rogue::start(|_| Ok(()))));
        assert_eq!(error.phase(), Some(Phase::Banner), "{error:?}");
        assert!(error.to_string().contains("closed the connection"), "{error}");
    });
}

#[test]
fn a_banner_of_another_protocol_version_is_refused() {
    within(PATIENCE, || {
        let server = Rogue::start(|conn| {
            conn.send_banner("SSH-1.5-Ancient")?;
            conn.ignore_until_closed()
        });
        let error = error_of(hasty(&server));
        assert!(matches!(error.phase(), Some(Phase::Banner | Phase::KeyExchange)), "{error:?}");
    });
}

#[test]
fn silence_in_the_key_exchange_is_given_up() {
    within(PATIENCE, || {
        let server = Rogue::start(|conn| {
            conn.send_banner("SSH-2.0-Sleepy")?;
            conn.ignore_until_closed()
        });
        let error = error_of(hasty(&server));
        assert!(matches!(error, Error::Timeout { phase: Phase::KeyExchange, .. }), "{error:?}");
    });
}

#[test]
fn nothing_in_common_says_so() {
    within(PATIENCE, || {
        let server = Rogue::start(|conn| conn.handshake(&Offer::default().cipher("rot13@threadline.test")));
        let error = error_of(builder(&server));
        assert!(matches!(error, Error::Handshake { phase: Phase::KeyExchange, .. }), "{error:?}");
        assert!(
            error.to_string().contains("no cipher in common: the server offers rot13@threadline.test; "),
            "{error}"
        );
    });
}

#[test]
fn a_signature_that_is_wrong_is_refused() {
    within(PATIENCE, || {
        let server = Rogue::start(|conn| {
            conn.send_banner("SSH-2.0-Impostor")?;
            conn.recv_banner()?;
            conn.send_kexinit(&Offer::default())?;
            conn.recv_kexinit()?;
            conn.recv_ecdh_init()?;
            let mut reply = conn.kex_reply()?;
            *reply.last_mut().expect("not empty") ^= 1;
            conn.send(&reply)?;
            conn.ignore_until_closed()
        });
        let error = error_of(builder(&server));
        assert!(matches!(error, Error::Handshake { phase: Phase::KeyExchange, .. }), "{error:?}");
    });
}

#[test]
fn silence_while_logging_in_is_given_up() {
    within(PATIENCE, || {
        let before_the_service = Rogue::start(|conn| {
            conn.handshake(&Offer::default())?;
            conn.ignore_until_closed()
        });
        let phase = error_of(hasty(&before_the_service)).phase();
        assert!(matches!(phase, Some(Phase::KeyExchange | Phase::Auth)), "{phase:?}");

        let before_the_list = Rogue::start(|conn| {
            conn.handshake(&Offer::default())?;
            conn.accept_service("ssh-userauth")?;
            conn.ignore_until_closed()
        });
        let error = error_of(hasty(&before_the_list));
        assert!(matches!(error, Error::Timeout { phase: Phase::Auth, after: LIMIT, .. }), "{error:?}");

        let before_the_answer = Rogue::start(|conn| {
            conn.handshake(&Offer::default())?;
            conn.accept_service("ssh-userauth")?;
            conn.expect(msg::USERAUTH_REQUEST)?;
            conn.refuse_auth(&["password"])?;
            conn.ignore_until_closed()
        });
        let error = error_of(hasty(&before_the_answer));
        assert!(matches!(error, Error::Timeout { phase: Phase::Auth, .. }), "{error:?}");
    });
}

#[test]
fn a_flood_while_logging_in_is_cut_off() {
    within(PATIENCE, || {
        let server = Rogue::start(|conn| {
            conn.handshake(&Offer::default())?;
            conn.accept_service("ssh-userauth")?;
            let banner = message(msg::USERAUTH_BANNER).string("a".repeat(30_000)).string("").done();
            loop {
                conn.send(&banner)?;
            }
        });
        let error = error_of(builder(&server));
        assert!(error.to_string().len() < 1000, "{error}");
        assert!(matches!(error.phase(), Some(Phase::Auth | Phase::KeyExchange) | None), "{error:?}");
    });
}

#[test]
fn the_banner_before_the_login_can_be_read() {
    within(PATIENCE, || {
        let server = Rogue::start(|conn| {
            conn.handshake(&Offer::default())?;
            conn.accept_service("ssh-userauth")?;
            conn.auth_banner("Welcome, \u{1b}[31mstranger\n")?;
            let request = conn.expect(msg::USERAUTH_REQUEST)?;
            assert_eq!(Reader::message(&request, msg::USERAUTH_REQUEST)?.text()?, "tester");
            conn.send(&[msg::USERAUTH_SUCCESS])?;
            conn.serve(&mut Behaviour::new())
        });
        let client = client(&server);
        assert_eq!(client.auth_banner(), Some("Welcome, \u{1b}[31mstranger\n"));
        assert_eq!(client.server_banner(), "SSH-2.0-Rogue_1");
    });
}

#[test]
fn the_servers_last_words_are_shown_escaped() {
    within(PATIENCE, || {
        let at_the_login = Rogue::start(|conn| {
            conn.handshake(&Offer::default())?;
            conn.accept_service("ssh-userauth")?;
            conn.disconnect(2, "too many \u{1b}[2Jfailures")?;
            conn.wait_for_end().map(|_| ())
        });
        let text = error_of(builder(&at_the_login)).to_string();
        assert!(text.contains("too many \\u{1b}[2Jfailures"), "{text}");

        let later = Rogue::logged_in(|conn| {
            let (channel, _) = conn.expect_exec()?;
            conn.data(channel, b"before\n")?;
            conn.disconnect(11, "closing \u{1b}[2Jtime")?;
            conn.wait_for_end().map(|_| ())
        });
        let client: Client = client(&later);
        let (stdout, status) = outcome(client.exec_command("true").expect("started"));
        assert_eq!(stdout, b"before\n");
        let text = status.expect_err("lost").to_string();
        assert_eq!(text, "connection lost: the server disconnected: closing \\u{1b}[2Jtime (reason 11)");
        assert_eq!(client.sh("true").status().expect_err("lost").to_string(), text);
    });
}

#[test]
fn certificates_are_not_offered_for_host_keys() {
    within(PATIENCE, || {
        let (told, offered) = std::sync::mpsc::channel();
        let server = Rogue::start(move |conn| {
            conn.send_banner("SSH-2.0-Curious")?;
            conn.recv_banner()?;
            let kexinit = conn.recv()?;
            let mut fields = Reader::message(&kexinit, msg::KEXINIT)?;
            fields.take(16)?;
            let _ = told.send((fields.names()?, fields.names()?));
            Ok(())
        });
        error_of(builder(&server));
        let (kex, host_keys) = offered.recv_timeout(PATIENCE).expect("a KEXINIT");
        assert!(kex.contains(&"curve25519-sha256".to_owned()), "{kex:?}");
        assert!(host_keys.contains(&"ssh-ed25519".to_owned()), "{host_keys:?}");
        assert!(!host_keys.iter().any(|name| name.contains("cert")), "{host_keys:?}");
    });
}
