use std::net::{TcpListener, TcpStream};

use super::*;

fn socket(listener: &TcpListener) -> Socket {
    Socket::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap()).unwrap()
}

/// What `sys` says of the bundled library, told by what is found there: whoever adopts a new one sees it here.
#[test]
fn the_seam_matches_the_bundled_library() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = RawSession::new(socket(&listener), Pool::new()).unwrap();
    // SAFETY: as in `install_method`; names are static strings.
    let found = unsafe {
        let mut slot = ssh2_comp_methods(session.raw.as_ptr());
        let mut found = Vec::new();
        while let Some(method) = (*slot).as_ref() {
            found.push((CStr::from_ptr(method.name).to_str().unwrap(), ptr::from_ref(method)));
            slot = slot.add(1);
        }
        found
    };
    // Without the flag for compression there is one method, and it is ours.
    assert_eq!(found, [("none", ptr::from_ref(&TAP_METHOD))]);
    // A second session finds it there and is content.
    drop(RawSession::new(socket(&listener), Pool::new()).unwrap());
}

#[test]
fn a_dropped_session_leaves_the_registry() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = RawSession::new(socket(&listener), Pool::new()).unwrap();
    let (raw, tap) = (session.raw.as_ptr() as usize, session.tap.as_ptr() as usize);
    assert_eq!(registry(|r| r.get(&raw).copied()), Some(tap));
    drop(session);
    // Another session may have got the address since; it has a tap of its own.
    assert_ne!(registry(|r| r.get(&raw).copied()), Some(tap));
}

#[test]
fn errors_can_be_read_and_forgotten() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut session = RawSession::new(socket(&listener), Pool::new()).unwrap();
    assert_eq!(session.last_error(), None);
    assert!(session.call(|s| s.method_pref(ssh2::MethodType::Kex, "no-such-method")).is_err());
    assert!(session.last_error().is_some());
    session.clear_error();
    assert_eq!(session.last_error(), None);
}
