//! The fuzz target's body, by any bytes, and by bytes that lead far into it.

use proptest::prelude::*;

use crate::transport::cipher::fuzzing::ciphers;

/// Operations with short packets, so that a script has many.
fn operations() -> impl Strategy<Value = Vec<u8>> {
    let made_up = prop::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| {
        let len = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        [&[0][..], &len, &bytes].concat()
    });
    let private = made_up.clone().prop_map(|mut operation| {
        operation[0] = 1;
        operation
    });
    let exchange = (0..6_u8, any::<[u8; 2]>(), prop_oneof![Just(0), any::<u8>()])
        .prop_map(|(blocks, [high, low], change)| vec![2, blocks, high, low, change]);
    prop::collection::vec(prop_oneof![made_up, private, exchange.clone(), exchange], 0..20).prop_map(|all| all.concat())
}

proptest! {
    #[test]
    fn any_bytes_do_no_harm_to_the_ciphers(script in prop::collection::vec(any::<u8>(), 0..2000)) {
        ciphers(&script);
    }

    #[test]
    fn any_packets_do_no_harm_to_the_ciphers(begin in any::<[u8; 3]>(), operations in operations()) {
        ciphers(&[&begin[..], &operations].concat());
    }
}
