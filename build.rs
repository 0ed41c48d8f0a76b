//! Stops the build with one clear sentence when libssh2 is not the bundled one.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // libssh2-sys sets this for its dependents only when it compiled the C source it carries.
    if std::env::var_os("DEP_SSH2_ROOT").is_none() {
        eprintln!(
            "threadline needs the libssh2 that libssh2-sys bundles, but a system libssh2 was chosen: \
             unset LIBSSH2_SYS_USE_PKG_CONFIG and build again."
        );
        std::process::exit(1);
    }
}
