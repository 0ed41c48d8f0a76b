//! Key exchanges in the middle of a connection. libssh2 on its own crashes on some of these; we must not, must not
//! wait for ever, and must not deliver what may not come now.

use std::io::Write;
use std::thread;
use std::time::Duration;

use threadline::{Error, ExitStatus};

use super::{builder, client, each, methods, outcome};
use crate::connect::PATIENCE;
use crate::rogue::{msg, Behaviour, Offer, Part, RekeyFault, Rogue, ServerConn};
use crate::rogue_fixture::{every_protection, megabyte};
use crate::util::within;

/// What a client gets of a command in whose middle the server does this at a key exchange. Where the exchange ends well
/// the server goes on.
fn at(offer: &Offer, fault: RekeyFault) -> (String, Result<ExitStatus, Error>) {
    // Where there is nothing to wait for, not long; elsewhere as long as a busy machine may take.
    let endless = matches!(fault, RekeyFault::NeverReplies | RekeyFault::NeverNewkeys);
    let limit = if endless { Duration::from_millis(300) } else { PATIENCE };
    at_exchange(offer, limit, move |conn, channel| {
        let fault = match fault {
            RekeyFault::DataBehindKexinit(_) => RekeyFault::DataBehindKexinit(channel),
            RekeyFault::DataBeforeNewkeys(_) => RekeyFault::DataBeforeNewkeys(channel),
            other => other,
        };
        conn.rekey_with(fault)
    })
}

fn at_exchange(
    offer: &Offer,
    limit: Duration,
    exchange: impl Fn(&mut ServerConn, u32) -> std::io::Result<()> + Send + Sync + 'static,
) -> (String, Result<ExitStatus, Error>) {
    let server = Rogue::logged_in_with(offer.clone(), move |conn| {
        let (channel, _) = conn.expect_exec()?;
        conn.data(channel, b"before\n")?;
        if exchange(conn, channel).is_ok() && conn.is_between_exchanges() {
            // Fails where the client has gone already.
            let _ = conn.data(channel, b"after\n").and_then(|()| conn.finish(channel, 0));
        }
        // The end of the connection is the client's doing, and comes in time.
        conn.wait_for_end().map(|_| ())
    });
    let client = builder(&server).rekey_timeout(limit).connect().expect("logged in");
    let (stdout, status) = outcome(client.exec_command("true").expect("started"));
    drop(client);
    server.wait().unwrap_or_else(|error| panic!("{}: the client does not go: {error}", methods(offer)));
    (String::from_utf8_lossy(&stdout).into_owned(), status)
}

/// With every cipher and MAC, the server's fault ends the connection with an error that says so, and nothing that
/// comes after the fault is delivered.
#[track_caller]
fn ends_the_connection(fault: RekeyFault, says: &[&str]) {
    within(PATIENCE, {
        let says: Vec<String> = says.iter().map(ToString::to_string).collect();
        move || {
            each(&every_protection(), |offer| {
                let (stdout, status) = at(offer, fault);
                assert_eq!(stdout, "before\n", "{} {fault:?}", methods(offer));
                let error = status.expect_err("the connection has ended");
                println!("{} {fault:?}: {error}", methods(offer));
                let text = error.to_string();
                let said = says.iter().any(|words| text.contains(words.as_str()));
                assert!(said, "{} {fault:?}: {text}", methods(offer));
            });
        }
    });
}

#[test]
fn a_megabyte_comes_back_intact_while_the_server_changes_keys() {
    within(PATIENCE, || {
        let data = &megabyte();
        each(&every_protection(), |offer| {
            let server = Rogue::logged_in_with(offer.clone(), |conn| {
                conn.serve(&mut Behaviour::new().rekey_every(300_000))?;
                assert!(conn.exchanges >= 6, "only {} key exchanges", conn.exchanges);
                Ok(())
            });
            let client = client(&server);
            let mut child = client.exec_command("cat").expect("started");
            let mut stdin = child.stdin.take().expect("piped");
            let (stdout, status) = thread::scope(|scope| {
                scope.spawn(move || stdin.write_all(data).expect("written"));
                outcome(child)
            });
            assert!(stdout == *data, "{}: {} bytes came back, and not the same", methods(offer), stdout.len());
            assert_eq!(status.expect("ended"), ExitStatus::Code(0), "{}", methods(offer));
            client.close(PATIENCE).expect("closed");
            server.wait().expect("served");
        });
    });
}

#[test]
fn a_packet_split_behind_the_kexinit_does_no_harm() {
    within(PATIENCE, || {
        each(&every_protection(), |offer| {
            let (stdout, status) = at_exchange(offer, PATIENCE, |conn, _| {
                let sizes = [1, 4, 8, 16, 20, 36];
                sizes.into_iter().try_for_each(|size| conn.rekey_with(RekeyFault::SplitBehindKexinit(size)))
            });
            assert_eq!((stdout.as_str(), status.expect("ended")), ("before\nafter\n", ExitStatus::Code(0)));
        });
    });
}

#[test]
fn another_cipher_at_a_rekey_ends_the_connection() {
    ends_the_connection(RekeyFault::OtherCipher, &["key exchange failed"]);
}

#[test]
fn another_mac_at_a_rekey_ends_the_connection() {
    within(PATIENCE, || {
        let with_macs: Vec<Offer> =
            every_protection().into_iter().filter(|offer| offer.ciphers[0][0].ends_with("-ctr")).collect();
        each(&with_macs, |offer| {
            let (stdout, status) = at(offer, RekeyFault::OtherMac);
            assert_eq!(stdout, "before\n", "{}", methods(offer));
            let text = status.expect_err("the connection has ended").to_string();
            assert!(text.contains("key exchange failed"), "{}: {text}", methods(offer));
        });
    });
}

#[test]
fn nothing_in_common_at_a_rekey_ends_the_connection() {
    ends_the_connection(RekeyFault::NothingInCommon, &["key exchange failed"]);
}

#[test]
fn a_bad_mac_inside_a_key_exchange_ends_the_connection() {
    ends_the_connection(RekeyFault::BadMacInside(Part::Tag), &["integrity", "key exchange failed", "decrypted"]);
}

#[test]
fn a_bit_flipped_inside_a_key_exchange_ends_the_connection() {
    ends_the_connection(RekeyFault::BadMacInside(Part::Body), &["integrity", "key exchange failed", "decrypted"]);
}

#[test]
fn a_bad_signature_ends_the_connection() {
    ends_the_connection(RekeyFault::BadSignature, &["key exchange failed"]);
}

#[test]
fn another_host_key_at_a_rekey_ends_the_connection() {
    ends_the_connection(RekeyFault::OtherHostKey, &["another host key"]);
}

#[test]
fn a_second_kexinit_ends_the_connection() {
    ends_the_connection(RekeyFault::SecondKexinit, &["second KEXINIT"]);
}

#[test]
fn a_kexinit_in_place_of_the_reply_ends_the_connection() {
    ends_the_connection(RekeyFault::KexinitForReply, &["second KEXINIT"]);
}

#[test]
fn newkeys_before_the_exchange_end_the_connection() {
    ends_the_connection(RekeyFault::NewkeysTooEarly, &["key exchange"]);
}

#[test]
fn an_exchange_that_never_gets_a_reply_ends_the_connection_in_time() {
    ends_the_connection(RekeyFault::NeverReplies, &["a key exchange was not finished within"]);
}

#[test]
fn an_exchange_that_never_gets_newkeys_ends_the_connection_in_time() {
    ends_the_connection(RekeyFault::NeverNewkeys, &["a key exchange was not finished within"]);
}

#[test]
fn a_connection_that_ends_inside_a_key_exchange_is_lost() {
    ends_the_connection(RekeyFault::EndsInside, &["closed the connection", "key exchange failed"]);
}

#[test]
fn data_behind_the_kexinit_is_not_delivered() {
    ends_the_connection(RekeyFault::DataBehindKexinit(0), &["inside a key exchange"]);
}

#[test]
fn data_before_newkeys_is_not_delivered() {
    ends_the_connection(RekeyFault::DataBeforeNewkeys(0), &["inside a key exchange"]);
}

/// Before somebody is logged in libssh2 runs the exchange by itself, with all the faults it has.
#[test]
fn a_rekey_during_the_login_is_refused() {
    within(PATIENCE, || {
        let faults = [
            RekeyFault::SplitBehindKexinit(8),
            RekeyFault::SplitBehindKexinit(20),
            RekeyFault::OtherCipher,
            RekeyFault::NeverReplies,
        ];
        for fault in faults {
            each(&every_protection(), |offer| {
                let offered = offer.clone();
                let server = Rogue::start(move |conn| {
                    conn.handshake(&offered)?;
                    conn.accept_service("ssh-userauth")?;
                    conn.expect(msg::USERAUTH_REQUEST)?;
                    let _ = conn.rekey_with(fault);
                    conn.wait_for_end().map(|_| ())
                });
                let text = builder(&server).connect().expect_err("the server misbehaves").to_string();
                assert!(text.contains("key exchange before"), "{} {fault:?}: {text}", methods(offer));
                server.wait().expect("the client goes");
            });
        }
    });
}

#[test]
fn a_rekey_before_the_first_service_is_refused() {
    within(PATIENCE, || {
        let faults = [RekeyFault::SplitBehindKexinit(20), RekeyFault::OtherCipher];
        for fault in faults {
            each(&every_protection(), |offer| {
                let offered = offer.clone();
                let server = Rogue::start(move |conn| {
                    conn.handshake(&offered)?;
                    let _ = conn.rekey_with(fault);
                    conn.wait_for_end().map(|_| ())
                });
                let text = builder(&server).connect().expect_err("the server misbehaves").to_string();
                assert!(text.contains("key exchange before"), "{} {fault:?}: {text}", methods(offer));
                server.wait().expect("the client goes");
            });
        }
    });
}
