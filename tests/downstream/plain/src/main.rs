//! A program that depends on threadline and on nothing else.

fn main() {
    std::process::exit(plain::check_for_c());
}
