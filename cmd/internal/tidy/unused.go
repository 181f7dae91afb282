package tidy

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"
)

// CheckUnused finds exported declarations that production code does not name anywhere
// else. Tools that look for dead code skip exported methods, because reflection might
// call them. The check compares names alone: it has false negatives and no false
// positives.
func (t *Tree) CheckUnused() (findings []string) {
	uses := t.uses()
	for _, f := range t.production() {
		if isTestSupport(f.Dir) {
			continue
		}
		generated := ast.IsGenerated(f.ast)
		for _, d := range declared(f.ast, generated) {
			if uses[d.id.Name] == 0 && implemented[d.id.Name] == "" {
				findings = append(findings, fmt.Sprintf("%s: nothing uses %s %s: remove it, or add the missing use",
					t.at(d.id), d.kind, d.id.Name))
			}
		}
	}
	return findings
}

func isTestSupport(dir string) bool {
	return slices.Contains(testSupport, dir) || strings.HasPrefix(dir, "cmd/internal/tidy")
}

// uses counts the occurrences of each name in production code, except those that
// declare it. Of generated code, which uses its own declarations, only the types of
// fields count.
func (t *Tree) uses() map[string]int {
	uses := map[string]int{}
	for _, f := range t.production() {
		if isTestSupport(f.Dir) {
			continue
		}
		if ast.IsGenerated(f.ast) {
			fieldTypes(f.ast, uses)
			continue
		}
		declares := map[*ast.Ident]bool{}
		for _, d := range declared(f.ast, false) {
			declares[d.id] = true
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && !declares[id] {
				uses[id.Name]++
			}
			return true
		})
	}
	return uses
}

func fieldTypes(file *ast.File, uses map[string]int) {
	ast.Inspect(file, func(n ast.Node) bool {
		s, ok := n.(*ast.StructType)
		if !ok {
			return true
		}
		for _, field := range s.Fields.List {
			ast.Inspect(field.Type, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					uses[id.Name]++
				}
				return true
			})
		}
		return false
	})
}

// declaration is an exported name where it is declared.
type declaration struct {
	kind string
	id   *ast.Ident
}

// declared returns the exported names that a file declares at its top level, and
// its methods. Of generated code it returns the types that are messages, and the
// values of enums.
func declared(file *ast.File, generated bool) (found []declaration) {
	add := func(kind string, id *ast.Ident) {
		if id.IsExported() {
			found = append(found, declaration{kind, id})
		}
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if !generated {
				add("function", d.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					// A oneof has a type for each of its fields, with an underscore.
					if _, isStruct := spec.Type.(*ast.StructType); !generated || isStruct && !strings.Contains(spec.Name.Name, "_") {
						add("type", spec.Name)
					}
				case *ast.ValueSpec:
					for _, id := range spec.Names {
						if !generated || enumValue(spec) {
							add("value", id)
						}
					}
				}
			}
		}
	}
	return found
}

// enumValue reports whether a generated value is one of an enum, and not its zero.
func enumValue(spec *ast.ValueSpec) bool {
	if spec.Type == nil || len(spec.Values) != 1 {
		return false
	}
	lit, ok := spec.Values[0].(*ast.BasicLit)
	return ok && lit.Value != "0"
}
