//! Channels over one connection: independence, windows, limits, endings, leftovers.

use std::io::Write;
use std::time::{Duration, Instant};

use threadline::{Printer, Stream};

use crate::connect::client;
use crate::sshd::Sshd;
use crate::util::within;

#[test]
fn a_command_prints_and_ends() {
    within(Duration::from_secs(20), || {
        let server = Sshd::start().unwrap();
        let t = Instant::now();
        let client = client(&server);
        eprintln!("connect {:?} {:?}", t.elapsed(), client.algorithms());
        for _ in 0..4 {
            let t = Instant::now();
            let out = client.sh("echo hi; echo err >&2; exit 3").output().unwrap();
            assert_eq!(out.stdout, b"hi\n");
            assert_eq!(out.stderr, b"err\n");
            assert_eq!(out.status.code(), Some(3));
            eprintln!("cmd {:?}", t.elapsed());
        }
        let t = Instant::now();
        let out = client.sh("head -c 300000000 /dev/zero").output().unwrap();
        assert_eq!(out.stdout.len(), 300_000_000);
        eprintln!("down {:.0} MB/s", 300.0 / t.elapsed().as_secs_f64());
        let mut child = client.exec_command("cat | wc -c").unwrap();
        let t = Instant::now();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&vec![7; 300_000_000]).unwrap();
        drop(stdin);
        assert_eq!(String::from_utf8_lossy(&child.output().unwrap().stdout).trim(), "300000000");
        eprintln!("up {:.0} MB/s", 300.0 / t.elapsed().as_secs_f64());
        let lines: Vec<_> = client
            .sh("for i in 1 2 3; do echo o$i; sleep 0.05; echo e$i >&2; sleep 0.05; done")
            .spawn()
            .unwrap()
            .lines()
            .map(|l| l.unwrap())
            .collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[1].stream, Stream::Stderr);
        let printer = Printer::stdout();
        printer
            .follow("one", client.exec_command("echo One;sleep 0.2;echo Two;sleep 0.1;echo Three").unwrap())
            .unwrap();
        printer.follow("two", client.exec_command("echo A;sleep 0.1;echo B;sleep 0.2;echo C").unwrap()).unwrap();
        printer.join().unwrap();
        let mut child = client.sh("sleep 100 | sleep 101 & sleep 102").process_group(true).spawn().unwrap();
        let t = Instant::now();
        eprintln!("{:?} {:?} {:?}", child.process_group_id(), child.kill().unwrap(), t.elapsed());
        eprintln!("{:?}", child.wait().unwrap());
        let t = Instant::now();
        client.close(Duration::from_secs(3)).unwrap();
        eprintln!("close {:?}", t.elapsed());
    });
}
