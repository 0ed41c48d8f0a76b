//! libssh2's table after our methods are stored.

use super::*;

/// Name, block, IV, key, tag: as the pinned libssh2 states them. Whoever adopts a new one sees here what has changed.
const TABLE: [(&str, c_int, c_int, c_int, c_int); 10] = [
    ("chacha20-poly1305@openssh.com", 8, 0, 64, 16),
    ("aes256-gcm@openssh.com", 16, 12, 32, 16),
    ("aes128-gcm@openssh.com", 16, 12, 16, 16),
    ("aes256-ctr", 16, 16, 32, 0),
    ("aes192-ctr", 16, 16, 24, 0),
    ("aes128-ctr", 16, 16, 16, 0),
    ("aes256-cbc", 16, 16, 32, 0),
    ("rijndael-cbc@lysator.liu.se", 16, 16, 32, 0),
    ("aes192-cbc", 16, 16, 24, 0),
    ("aes128-cbc", 16, 16, 16, 0),
];

fn slots() -> Vec<(String, CryptMethod)> {
    let mut found = Vec::new();
    // SAFETY: as in `install`; names are static strings.
    unsafe {
        for_each_slot(|_, method| found.push((CStr::from_ptr(method.name).to_str().unwrap().to_owned(), *method)));
    }
    found
}

#[test]
fn the_table_is_the_one_we_know() {
    install();
    let found = slots();
    let sizes = |m: &CryptMethod| (m.blocksize, m.iv_len, m.secret_len, m.auth_len);
    let seen: Vec<_> = found.iter().map(|(name, m)| (name.as_str(), sizes(m))).collect();
    assert_eq!(seen, TABLE.map(|(name, block, iv, key, tag)| (name, (block, iv, key, tag))));
}

#[test]
fn each_slot_holds_what_is_said_of_it() {
    install();
    let fast = cfg!(feature = "fast-ciphers");
    for (name, method) in slots() {
        let crypt = method.crypt.unwrap() as usize;
        let ours = [on_crypt::<BLOCK_WISE>, on_crypt::<GCM>, on_crypt::<CHACHA>].map(|f| f as CryptFn as usize);
        let flags = match family_of(&name) {
            GCM if fast => FLAG_WHOLE_PACKET,
            GCM => FLAG_INTEGRATED_MAC | FLAG_LENGTH_IN_CLEAR,
            CHACHA => FLAG_WHOLE_PACKET,
            _ => 0,
        };
        assert_eq!(method.flags, flags, "{name}");
        assert!(ours.contains(&crypt), "{name}");
        let is_fast = family_of(&name) != BLOCK_WISE || name.ends_with("-ctr");
        let whose = if fast && is_fast { Implementation::Threadline } else { Implementation::Libssh2 };
        let told = in_use().into_iter().find(|(known, _)| *known == name).unwrap().1;
        assert_eq!(told, whose, "{name}");
    }
}

#[test]
fn storing_again_changes_nothing() {
    install();
    let addresses = || {
        let mut found = Vec::new();
        // SAFETY: as in `install`.
        unsafe { for_each_slot(|slot, _| found.push(slot.load(Ordering::Acquire) as usize)) };
        found
    };
    let before = addresses();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..100).for_each(|_| install()));
        }
    });
    assert_eq!(addresses(), before);
}

/// Somebody else's method, or a libssh2 that says something else of its own, is left alone.
#[test]
fn a_method_that_is_not_as_we_know_it_is_not_replaced() {
    unsafe extern "C" fn theirs(
        _: *mut LIBSSH2_SESSION,
        _: c_uint,
        _: *mut u8,
        _: usize,
        _: *mut *mut c_void,
        _: c_int,
    ) -> c_int {
        0
    }
    install();
    for name in ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr", "aes128-cbc"] {
        let original = ORIGINAL[family_of(name)].get().unwrap();
        let flags = match family_of(name) {
            GCM => FLAG_INTEGRATED_MAC | FLAG_LENGTH_IN_CLEAR,
            CHACHA => FLAG_WHOLE_PACKET,
            _ => 0,
        };
        let before = CryptMethod {
            flags,
            init: Some(original.init),
            get_len: original.get_len,
            crypt: Some(original.crypt),
            dtor: Some(original.dtor),
            ..*method(name)
        };
        assert!(replacement(&before).is_some(), "{name}");
        assert!(replacement(&CryptMethod { crypt: Some(theirs), ..before }).is_none(), "{name}");
        if family_of(name) != BLOCK_WISE {
            assert!(replacement(&CryptMethod { secret_len: before.secret_len + 1, ..before }).is_none(), "{name}");
            assert!(replacement(&CryptMethod { flags: before.flags | 8, ..before }).is_none(), "{name}");
            assert!(replacement(&CryptMethod { auth_len: 12, ..before }).is_none(), "{name}");
        }
    }
}
