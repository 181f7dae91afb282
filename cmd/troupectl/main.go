// Command troupectl inspects the data of a stopped member.
//
//	troupectl verify DATA-DIR    check the data for damage
//	troupectl wal dump DATA-DIR  print the write-ahead log
//
// It changes nothing in the data directory, and fails if a member is running on it.
// The client of a running member is etcdctl.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // damage was found, or the data could not be checked
	exitUsage  = 2 // the command line cannot be parsed
)

const usage = `usage:
  troupectl verify DATA-DIR [--wal-dir DIR] [--json]
        check the data of a stopped member: its identity, the write-ahead log,
        the store and its index, and that they belong together. Nothing is
        changed.
  troupectl wal dump DATA-DIR [--wal-dir DIR] [--from INDEX] [--to INDEX] [--values]
        print the records of the write-ahead log, one per line.
  troupectl version
  troupectl help

exit code: 0 no damage; 1 damage was found, or the data could not be checked;
2 the command line cannot be parsed
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// errUsage means that the command line cannot be parsed.
var errUsage = errors.New("bad command line")

// run is the whole life of the process, up to its exit code.
func run(args []string, stdout, stderr io.Writer) int {
	err := dispatch(args, stdout)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "troupectl: %v\n%s", err, usage)
		return exitUsage
	case errors.Is(err, errDamaged):
		return exitFailed // the report names the damage
	}
	fmt.Fprintf(stderr, "troupectl: %v\n", err)
	return exitFailed
}

func dispatch(args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("%w: no command", errUsage)
	}
	command, rest := args[0], args[1:]
	if command == "wal" {
		if len(rest) == 0 {
			return fmt.Errorf("%w: wal has one subcommand, wal dump", errUsage)
		}
		command, rest = "wal "+rest[0], rest[1:]
	}
	switch command {
	case "verify":
		return verifyCommand(rest, stdout)
	case "wal dump":
		return dumpCommand(rest, stdout)
	case "version", "-version", "--version":
		_, err := fmt.Fprintln(stdout, versionText())
		return err
	case "help", "-h", "-help", "--help":
		_, err := io.WriteString(stdout, usage)
		return err
	}
	return fmt.Errorf("%w: unknown command %q", errUsage, command)
}

// newFlags returns the flags of a command, and a function that parses them and
// returns the only other argument, the data directory. Flags may be given before and
// after it.
func newFlags(stdout io.Writer) (fs *flag.FlagSet, parse func(args []string) (dataDir string, err error)) {
	fs = flag.NewFlagSet("", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // run prints errors
	return fs, func(args []string) (dataDir string, err error) {
		for {
			err := fs.Parse(args)
			if errors.Is(err, flag.ErrHelp) {
				_, _ = io.WriteString(stdout, usage) // nothing can be done if the help cannot be printed
				return "", err
			}
			if err != nil {
				return "", fmt.Errorf("%w: %w", errUsage, err)
			}
			if args = fs.Args(); len(args) == 0 {
				break
			}
			if dataDir != "" {
				return "", fmt.Errorf("%w: more than one data directory: %q", errUsage, args[0])
			}
			dataDir, args = args[0], args[1:]
		}
		if dataDir == "" {
			return "", fmt.Errorf("%w: no data directory", errUsage)
		}
		return dataDir, nil
	}
}

// versionText identifies what this binary was built from.
func versionText() string {
	version, revision := "(devel)", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	return fmt.Sprintf("troupectl Version: %s\nGit SHA: %s\nGo Version: %s\nGo OS/Arch: %s/%s",
		version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
