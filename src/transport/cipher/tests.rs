use super::*;

#[test]
fn every_method_of_the_table_is_ours_or_guarded() {
    install();
    install();
    let mut seen = Vec::new();
    // SAFETY: as in `install`; names are static strings.
    unsafe {
        for_each_slot(|_, method| {
            let name = CStr::from_ptr(method.name).to_str().unwrap();
            seen.push((name, method.blocksize, method.secret_len, method.flags));
        });
    }
    println!("{seen:?} {:?}", in_use());
}
