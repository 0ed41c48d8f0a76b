//! threadline in an archive that a C program is linked with.

/// Runs the check; 0 is success.
#[no_mangle]
pub extern "C" fn threadline_check() -> i32 {
    plain::check_for_c()
}
