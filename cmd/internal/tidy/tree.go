package tidy

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// module is the import path of the repository's root.
const module = "github.com/troupe-db/troupe/"

// Tree is the Go code of the repository, modules within it left out.
type Tree struct {
	fset  *token.FileSet
	files []*File
}

// File is a parsed source file.
type File struct {
	Path string // below the root
	Dir  string // its package: Path without the last element
	Test bool
	ast  *ast.File
	// imports are the import paths by the name under which the file uses them.
	imports map[string]string
}

// Load parses all Go files below a root.
func Load(root fs.FS) (*Tree, error) {
	t := &Tree{fset: token.NewFileSet()}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return skip(root, name)
		case strings.HasSuffix(name, ".go"):
			return t.add(root, name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tidy: %w", err)
	}
	return t, nil
}

func skip(root fs.FS, dir string) error {
	base := path.Base(dir)
	if dir == "." {
		return nil
	}
	if strings.HasPrefix(base, ".") || base == "testdata" {
		return fs.SkipDir
	}
	switch _, err := fs.Stat(root, path.Join(dir, "go.mod")); {
	case err == nil:
		return fs.SkipDir
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return nil
}

func (t *Tree) add(root fs.FS, name string) error {
	source, err := fs.ReadFile(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // an editor's temporary file, gone by now
	}
	if err != nil {
		return err
	}
	parsed, err := parser.ParseFile(t.fset, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	f := &File{Path: name, Dir: path.Dir(name), Test: strings.HasSuffix(name, "_test.go"), ast: parsed, imports: map[string]string{}}
	for _, spec := range parsed.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		f.imports[localName(spec, p)] = p
	}
	t.files = append(t.files, f)
	return nil
}

// localName returns the name of an import. If it is not explicit, it is guessed from
// the path: the last element that is not a version.
func localName(spec *ast.ImportSpec, p string) string {
	if spec.Name != nil {
		return spec.Name.Name
	}
	elements := strings.Split(p, "/")
	last := elements[len(elements)-1]
	if len(elements) > 1 && isVersion(last) {
		last = elements[len(elements)-2]
	}
	return last
}

func isVersion(s string) bool {
	n, ok := strings.CutPrefix(s, "v")
	return ok && n != "" && strings.Trim(n, "0123456789") == ""
}

// production returns the files that are not tests.
func (t *Tree) production() []*File {
	return slices.DeleteFunc(slices.Clone(t.files), func(f *File) bool { return f.Test })
}

// at returns the position of a node.
func (t *Tree) at(n ast.Node) string {
	p := t.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// selector splits pkg.Name into the import path of pkg and Name.
func (f *File) selector(e ast.Expr) (importPath, name string, ok bool) {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return "", "", false
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return "", "", false
	}
	importPath, ok = f.imports[x.Name]
	return importPath, s.Sel.Name, ok
}

// inside returns an import path relative to the root; false if it is not below it.
func inside(importPath string) (string, bool) { return strings.CutPrefix(importPath, module) }
