package tidy

import (
	"errors"
	"fmt"
	"go/ast"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

var (
	// span is a name in backticks.
	span = regexp.MustCompile("`([^`]+)`")
	// pathForm is a path: a folder, a file, or a pattern of files.
	pathForm = regexp.MustCompile(`^[\w.*-]+(/[\w.*-]+)+$`)
	// fileForm is a file without a folder.
	fileForm = regexp.MustCompile(`^[\w*-]+\.(go|md|proto)$`)
	// nameForm is pkg.Name, Type.Method or pkg.Type.Method, fields included.
	nameForm = regexp.MustCompile(`^[A-Za-z]\w*(\.[A-Za-z]\w*){1,2}$`)
	// testForm is a function of a test file.
	testForm = regexp.MustCompile(`^(Test|Benchmark|Fuzz)[A-Z]\w*$`)
)

// CheckDocument finds names in backticks in a document that are not in the tree: paths,
// files, functions, types and methods. Other words in backticks, and fenced blocks, are
// not checked. The paths of actors, such as edge/reads, are not paths of files.
func (t *Tree) CheckDocument(root fs.FS, document string) (findings []string, err error) {
	text, err := fs.ReadFile(root, document)
	if err != nil {
		return nil, err
	}
	files, err := baseNames(root)
	if err != nil {
		return nil, err
	}
	names := t.names()
	fenced := false
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if fenced {
			continue
		}
		for _, m := range span.FindAllStringSubmatch(line, -1) {
			if what := missing(root, files, names, m[1]); what != "" {
				findings = append(findings, fmt.Sprintf("%s:%d: `%s`: %s. Correct the document, or the name in it",
					document, i+1, m[1], what))
			}
		}
	}
	return findings, nil
}

// missing says what is wrong with a name; it returns "" if nothing is, or if the name has
// none of the forms that are checked.
func missing(root fs.FS, files []string, names map[string]bool, name string) string {
	switch first, _, _ := strings.Cut(name, "/"); {
	case first == "core", first == "edge":
	case pathForm.MatchString(name):
		if found, err := fs.Glob(root, name); err != nil || len(found) == 0 {
			return "there is no such file or folder"
		}
	case fileForm.MatchString(name):
		for _, f := range files {
			if ok, err := path.Match(name, f); ok && err == nil {
				return ""
			}
		}
		return "no folder has such a file"
	case nameForm.MatchString(name), testForm.MatchString(name):
		if !names[name] {
			return "no package or type has such a name"
		}
	}
	return ""
}

// baseNames returns the names of all files below a root, without their folders.
func baseNames(root fs.FS) (names []string, err error) {
	err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // an editor's temporary file, gone by now
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case !d.IsDir():
			names = append(names, d.Name())
		}
		return nil
	})
	return names, err
}

// names returns what a document may name: pkg.Name, Type.Method, pkg.Type.Method, fields
// as methods, and the functions of test files by themselves.
func (t *Tree) names() map[string]bool {
	names := map[string]bool{}
	for _, f := range t.files {
		pkg := strings.TrimSuffix(f.ast.Name.Name, "_test")
		member := func(typ, name string) { names[typ+"."+name], names[pkg+"."+typ+"."+name] = true, true }
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				switch typ := receiver(d); {
				case typ != "":
					member(typ, d.Name.Name)
				case f.Test:
					names[d.Name.Name] = true
				default:
					names[pkg+"."+d.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.ValueSpec:
						for _, id := range s.Names {
							names[pkg+"."+id.Name] = true
						}
					case *ast.TypeSpec:
						names[pkg+"."+s.Name.Name] = true
						for _, id := range members(s.Type) {
							member(s.Name.Name, id)
						}
					}
				}
			}
		}
	}
	return names
}

// receiver returns the name of the type that a method is of; "" for a function.
func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return ""
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// members returns the names of a struct's fields and of an interface's methods.
func members(typ ast.Expr) (names []string) {
	var list *ast.FieldList
	switch typ := typ.(type) {
	case *ast.StructType:
		list = typ.Fields
	case *ast.InterfaceType:
		list = typ.Methods
	default:
		return nil
	}
	for _, f := range list.List {
		for _, id := range f.Names {
			names = append(names, id.Name)
		}
	}
	return names
}
