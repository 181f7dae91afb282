// Command troupectl looks at the data of a member that does not run.
//
//	troupectl verify DATA-DIR    is the data whole?
//	troupectl wal dump DATA-DIR  what does the log hold?
//
// It changes nothing in the data directory, and refuses one on which a member
// runs. To clients of a running member, etcdctl is the tool.
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
	exitFailed = 1 // damage was found, or nothing could be checked
	exitUsage  = 2 // the command line cannot be understood
)

const usage = `usage:
  troupectl verify DATA-DIR [--wal-dir DIR] [--json]
        check the data of a member that does not run: its identity, the
        write-ahead log, the store, the index over it, and that they belong
        together. Nothing is changed.
  troupectl wal dump DATA-DIR [--wal-dir DIR] [--from INDEX] [--to INDEX] [--values]
        print the records of the write-ahead log, one per line.
  troupectl version
  troupectl help

exit code: 0 all is well; 1 damage was found, or it could not be checked;
2 the command line cannot be understood
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// errUsage: the command line cannot be understood.
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
		return exitFailed // the report says it
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
			return fmt.Errorf("%w: wal dump is what there is of wal", errUsage)
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
	return fmt.Errorf("%w: there is no command %q", errUsage, command)
}

// newFlags returns the flags of a command, and a function that parses them. They
// may stand before and after the data directory, which is the one other argument.
func newFlags(stdout io.Writer) (fs *flag.FlagSet, parse func(args []string) (dataDir string, err error)) {
	fs = flag.NewFlagSet("", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // run prints errors
	return fs, func(args []string) (dataDir string, err error) {
		for {
			err := fs.Parse(args)
			if errors.Is(err, flag.ErrHelp) {
				_, _ = io.WriteString(stdout, usage) // help that cannot be printed is no help
				return "", err
			}
			if err != nil {
				return "", fmt.Errorf("%w: %w", errUsage, err)
			}
			if args = fs.Args(); len(args) == 0 {
				break
			}
			if dataDir != "" {
				return "", fmt.Errorf("%w: one data directory, not also %q", errUsage, args[0])
			}
			dataDir, args = args[0], args[1:]
		}
		if dataDir == "" {
			return "", fmt.Errorf("%w: no data directory", errUsage)
		}
		return dataDir, nil
	}
}

// versionText says what this binary was made from.
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
