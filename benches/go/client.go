// Go's x/crypto/ssh in a process of its own, asked line by line; see benches/ssh/worker.rs.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

const (
	host   = "127.0.0.1"
	buffer = 256 * 1024
	ready  = "ready\n"
)

type client struct {
	user, identity, directory string
	connection                *ssh.Client
}

func (c *client) connect(port, cipher string) (time.Duration, error) {
	began := time.Now()
	known, err := knownhosts.New(c.directory + "/known_hosts." + port)
	if err != nil {
		return 0, err
	}
	key, err := os.ReadFile(c.identity)
	if err != nil {
		return 0, err
	}
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		return 0, err
	}
	config := ssh.ClientConfig{
		User:              c.user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback:   known,
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
	}
	if cipher != "default" {
		config.Ciphers = []string{cipher}
	}
	if c.connection != nil {
		c.connection.Close()
	}
	c.connection, err = ssh.Dial("tcp", host+":"+port, &config)
	return time.Since(began), err
}

// A command that has said that it is there, and both its ends.
type started struct {
	session *ssh.Session
	stdin   io.WriteCloser
	stdout  io.Reader
}

func (c *client) start(command string) (*started, error) {
	if c.connection == nil {
		return nil, errors.New("not connected")
	}
	session, err := c.connection.NewSession()
	if err != nil {
		return nil, err
	}
	stdin, err := session.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := session.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := session.Start(command); err != nil {
		return nil, err
	}
	said := make([]byte, len(ready))
	if _, err := io.ReadFull(stdout, said); err != nil {
		return nil, err
	}
	if !bytes.Equal(said, []byte(ready)) {
		return nil, fmt.Errorf("a command said %q first", said)
	}
	return &started{session, stdin, stdout}, nil
}

func (c *client) download(total, channels int) (time.Duration, error) {
	each := total / channels
	all := make([]*started, channels)
	for n := range all {
		one, err := c.start(fmt.Sprintf("echo ready; read line; exec head -c %d /dev/zero", each))
		if err != nil {
			return 0, err
		}
		all[n] = one
	}
	failed := make(chan error, channels)
	began := time.Now()
	var group sync.WaitGroup
	for _, one := range all {
		group.Add(1)
		go func(one *started) {
			defer group.Done()
			if err := one.read(each); err != nil {
				failed <- err
			}
		}(one)
	}
	group.Wait()
	took := time.Since(began)
	select {
	case err := <-failed:
		return 0, err
	default:
		return took, nil
	}
}

func (s *started) read(expected int) error {
	if _, err := s.stdin.Write([]byte("\n")); err != nil {
		return err
	}
	if err := expect(s.stdout, expected); err != nil {
		return err
	}
	return s.session.Wait()
}

func expect(from io.Reader, expected int) error {
	into, got := make([]byte, buffer), 0
	for {
		n, err := from.Read(into)
		got += n
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if got != expected {
		return fmt.Errorf("%d bytes instead of %d", got, expected)
	}
	return nil
}

func (c *client) upload(total int) (time.Duration, error) {
	one, err := c.start("echo ready; exec cat >/dev/null")
	if err != nil {
		return 0, err
	}
	zeros := make([]byte, buffer)
	began := time.Now()
	for left := total; left > 0; {
		n := len(zeros)
		if left < n {
			n = left
		}
		if _, err := one.stdin.Write(zeros[:n]); err != nil {
			return 0, err
		}
		left -= n
	}
	if err := one.stdin.Close(); err != nil {
		return 0, err
	}
	if err := one.session.Wait(); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

func (c *client) forward(port, expected int) (time.Duration, error) {
	if c.connection == nil {
		return 0, errors.New("not connected")
	}
	began := time.Now()
	stream, err := c.connection.Dial("tcp", fmt.Sprintf("%s:%d", host, port))
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	if _, err := stream.Write([]byte("\n")); err != nil {
		return 0, err
	}
	if err := expect(stream, expected); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

func (c *client) task(words []string) (time.Duration, error) {
	if len(words) == 3 && words[0] == "connect" {
		return c.connect(words[1], words[2])
	}
	numbers := make([]int, len(words)-1)
	for n, word := range words[1:] {
		number, err := strconv.Atoi(word)
		if err != nil {
			return 0, err
		}
		numbers[n] = number
	}
	switch {
	case words[0] == "download" && len(numbers) == 2:
		return c.download(numbers[0], numbers[1])
	case words[0] == "forward" && len(numbers) == 2:
		return c.forward(numbers[0], numbers[1])
	case words[0] == "upload" && len(numbers) == 1:
		return c.upload(numbers[0])
	}
	return 0, fmt.Errorf("an unknown task: %q", words)
}

// Processor seconds of this process, in user and kernel mode, all threads; and its peak memory in KiB.
func used() (float64, int64) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return cpu.Seconds(), usage.Maxrss
}

// Threads there are; Go keeps those it has made.
func threads() string {
	text, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "Threads:") {
			return strings.TrimSpace(strings.TrimPrefix(line, "Threads:"))
		}
	}
	return "0"
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "client USER IDENTITY DIRECTORY")
		os.Exit(2)
	}
	c := &client{user: os.Args[1], identity: os.Args[2], directory: os.Args[3]}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		before, _ := used()
		took, err := c.task(words)
		if err != nil {
			fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		cpu, peak := used()
		fmt.Println("ok", took.Seconds(), cpu-before, peak, threads())
	}
}
