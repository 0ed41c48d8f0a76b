//! threadline in a shared library with a C interface, as a plugin has it.

/// Runs the check; 0 is success.
#[no_mangle]
pub extern "C" fn threadline_check() -> i32 {
    plain::check_for_c()
}
