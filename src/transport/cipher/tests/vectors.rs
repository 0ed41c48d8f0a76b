//! Known answers: packets and private keys that Python computed (tests/vectors/ciphers.py), NIST's and RFC 8439's.

use serde_json::Value;

use super::*;

/// The vectors of one cipher.
struct Known {
    cipher: String,
    key: Vec<u8>,
    iv: Vec<u8>,
    packets: Vec<Packet>,
    private_key: [Vec<u8>; 2],
}

struct Packet {
    sequence: u32,
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}

fn known() -> Vec<Known> {
    let all: Value = serde_json::from_str(include_str!("../../../../tests/vectors/ciphers.json")).unwrap();
    let bytes = |of: &Value, name: &str| hex(of[name].as_str().unwrap());
    let one = |of: &Value| Known {
        cipher: of["cipher"].as_str().unwrap().to_owned(),
        key: bytes(of, "key"),
        iv: bytes(of, "iv"),
        packets: of["packets"].as_array().unwrap().iter().map(packet).collect(),
        private_key: ["plain", "sealed"].map(|name| bytes(&of["private_key"], name)),
    };
    fn packet(of: &Value) -> Packet {
        let sequence = u32::try_from(of["sequence"].as_u64().unwrap()).unwrap();
        let [plain, sealed] = ["plain", "sealed"].map(|name| hex(of[name].as_str().unwrap()));
        Packet { sequence, plain, sealed }
    }
    all.as_array().unwrap().iter().map(one).collect()
}

#[test]
fn every_fast_cipher_has_vectors() {
    let mut known: Vec<String> = known().into_iter().map(|known| known.cipher).collect();
    let mut fast: Vec<String> = in_use().into_iter().map(|(name, _)| name).filter(|name| is_fast(name)).collect();
    known.sort();
    fast.sort();
    assert_eq!(known, fast);
}

fn is_fast(name: &str) -> bool {
    family_of(name) != BLOCK_WISE || name.ends_with("-ctr")
}

/// As the packet layer calls the methods.
#[test]
fn packets_are_those_that_python_computes() {
    for known in known() {
        let name = known.cipher.as_str();
        let keys = |wanted| Keys::new(name, &known.key, &known.iv, wanted);
        let (mut sending, mut receiving) = (keys(Use::Sending), keys(Use::Receiving));
        for packet in &known.packets {
            assert_eq!(sending.seal(packet.sequence, &packet.plain).as_ref(), Some(&packet.sealed), "{name}");
            assert_eq!(receiving.open(packet.sequence, &packet.sealed).as_ref(), Some(&packet.plain), "{name}");
        }
        let count = u32::try_from(known.packets.len()).unwrap();
        assert_eq!((sending.context().packets, receiving.context().packets), (count, count), "{name}");
    }
}

/// libssh2's own functions, by the same vectors: what the tests do with both is the same.
#[test]
fn packets_are_those_that_libssh2_computes() {
    for known in known() {
        let name = known.cipher.as_str();
        let keys = |wanted| Keys::before_us(name, &known.key, &known.iv, wanted);
        let (mut sending, mut receiving) = (keys(Use::Sending), keys(Use::Receiving));
        for packet in &known.packets {
            assert_eq!(sending.seal(packet.sequence, &packet.plain).as_ref(), Some(&packet.sealed), "{name}");
            let opened = receiving.open(packet.sequence, &packet.sealed).unwrap();
            // Its chacha20 does not bother to move the last four bytes, which are padding.
            let cares = opened.len() - if family_of(name) == CHACHA { 4 } else { 0 };
            assert_eq!(opened[..cares], packet.plain[..cares], "{name}");
        }
    }
}

#[test]
fn private_keys_are_those_that_python_computes() {
    for known in known() {
        let name = known.cipher.as_str();
        let [plain, sealed] = &known.private_key;
        let mut keys = Keys::new(name, &known.key, &known.iv, Use::PrivateKey);
        assert_eq!(keys.open_private_key(sealed).as_ref(), Some(plain), "{name}");
        assert_eq!(keys.context().packets, 0, "{name}");
        if keys.whole_packets() {
            let mut keys = Keys::new(name, &known.key, &known.iv, Use::PrivateKey);
            let mut wrong = sealed.clone();
            wrong[7] ^= 1;
            assert_eq!(keys.open_private_key(&wrong), None, "{name}");
        }
    }
}

/// The ciphers themselves, without libssh2 around them.
#[test]
fn the_cores_agree_with_the_vectors() {
    for known in known() {
        let (name, key, iv) = (known.cipher.as_str(), &known.key, &known.iv);
        for packet in &known.packets {
            let mut sealed = [&packet.plain[..], &[0; TAG]].concat();
            let mut opened = packet.sealed.clone();
            match family_of(name) {
                GCM => {
                    let mut iv: [u8; 12] = iv.as_slice().try_into().unwrap();
                    let counter = u64::from_be_bytes(iv[4..].try_into().unwrap());
                    iv[4..].copy_from_slice(&(counter + u64::from(packet.sequence)).to_be_bytes());
                    Gcm::new(key, &iv, true).unwrap().seal(&mut sealed, LENGTH).unwrap();
                    Gcm::new(key, &iv, false).unwrap().open(&mut opened, LENGTH).unwrap();
                }
                CHACHA => {
                    let mut cipher = ChaCha::new(key).unwrap();
                    let field = opened[..LENGTH].try_into().unwrap();
                    assert_eq!(cipher.length(packet.sequence, field), Some(packet.plain.len() as u32 - 4));
                    cipher.seal(packet.sequence, &mut sealed, LENGTH).unwrap();
                    cipher.open(packet.sequence, &mut opened, LENGTH).unwrap();
                }
                _ => continue,
            }
            assert_eq!(sealed, packet.sealed, "{name}");
            assert_eq!(opened[LENGTH..packet.plain.len()], packet.plain[LENGTH..], "{name}");
        }
    }
}

/// Test cases 4 and 16 of McGrew and Viega's "The Galois/Counter Mode of Operation", which NIST took over; their
/// authenticated header has 20 bytes.
#[test]
fn gcm_gives_the_answers_of_its_specification() {
    let header = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    let text = hex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
         1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39");
    let key = hex("feffe9928665731c6d6a8f9467308308");
    let nonce = hex("cafebabefacedbaddecaf888");
    let answers = [
        (
            key.clone(),
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
             21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091 5bc94fbc3221a5db94fae95ae7121a47",
        ),
        (
            [&key[..], &key].concat(),
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662 76fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ];
    for (key, answer) in answers {
        let mut packet = [&header[..], &text, &[0; TAG]].concat();
        Gcm::new(&key, &nonce, true).unwrap().seal(&mut packet, header.len()).unwrap();
        assert_eq!(packet, [&header[..], &hex(answer)].concat());
        Gcm::new(&key, &nonce, false).unwrap().open(&mut packet, header.len()).unwrap();
        assert_eq!(packet[header.len()..header.len() + text.len()], text);
    }
}

/// RFC 8439 A.1, test vectors 1 and 2: the first blocks of a key and a nonce of zeros; and with OpenSSH's packet number
/// in it, the vector of draft-agl-tls-chacha20poly1305 whose nonce ends in 1.
#[test]
fn chacha20_gives_the_answers_of_rfc_8439() {
    let mut cipher = ChaCha::new(&[0; 64]).unwrap();
    assert_eq!(cipher.length(0, [0; 4]), Some(0x76b8_e0ad));
    assert_eq!(cipher.length(1, [0; 4]), Some(0xde9c_ba7b));
    let mut packet = [0; LENGTH + 64 + TAG];
    cipher.seal(0, &mut packet, LENGTH).unwrap();
    let answer = hex("9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed
         29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f");
    assert_eq!(packet[..LENGTH], hex("76b8e0ad"));
    assert_eq!(packet[LENGTH..LENGTH + 64], answer);
}

/// NIST SP 800-38A, F.5.1, F.5.3 and F.5.5.
#[test]
fn ctr_gives_the_answers_of_its_specification() {
    let counter = hex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff");
    let text = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51
         30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710");
    let answers = [
        (
            "2b7e151628aed2a6abf7158809cf4f3c",
            "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff
             5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee",
        ),
        (
            "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
            "1abc932417521ca24f2b0459fe7e6e0b090339ec0aa6faefd5ccc2c6f4ce8e94
             1e36b26bd1ebc670d1bd1d665620abf74f78a7f6d29809585a97daec58c6b050",
        ),
        (
            "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
            "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5
             2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6",
        ),
    ];
    for (key, answer) in answers {
        // At once, in libssh2's blocks, and in pieces of no block's size.
        for size in [text.len(), 16, 7] {
            let mut cipher = Ctr::new(&hex(key), &counter).unwrap();
            let mut data = text.clone();
            data.chunks_mut(size).for_each(|piece| cipher.apply(piece).unwrap());
            assert_eq!(data, hex(answer), "{key} {size}");
        }
    }
}

#[test]
fn keys_and_nonces_of_other_lengths_are_refused() {
    for len in (0..70).filter(|len| ![16, 32].contains(len)) {
        assert!(Gcm::new(&vec![0; len], &[0; 12], true).is_none(), "{len}");
    }
    for len in (0..70).filter(|&len| len != 64) {
        assert!(ChaCha::new(&vec![0; len]).is_none(), "{len}");
    }
    for len in (0..70).filter(|len| ![16, 24, 32].contains(len)) {
        assert!(Ctr::new(&vec![0; len], &[0; 16]).is_none(), "{len}");
    }
    assert!(Gcm::new(&[0; 16], &[0; 11], true).is_none());
    assert!(Ctr::new(&[0; 16], &[0; 12]).is_none());
}
