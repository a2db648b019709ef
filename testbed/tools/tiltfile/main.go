// tiltfile FILE: loads a Tiltfile and prints, one JSON object a line, what it asks Tilt to do.
//
// Tilt's functions are stand-ins that record their arguments. Two do what they say: local() runs its command and gives its output,
// helm() renders its chart with the helm on the PATH. What a Tiltfile may call is what is listed here; anything else is an error.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	starlarkjson "go.starlark.net/lib/json"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"
)

// Functions that only tell Tilt something.
var recorded = []string{
	"version_settings", "update_settings", "allow_k8s_contexts", "custom_build", "docker_build", "k8s_yaml", "k8s_kind",
	"k8s_resource", "local_resource", "sync", "run", "watch_file",
}

func plain(value starlark.Value) any {
	text, err := starlark.Call(&starlark.Thread{}, starlarkjson.Module.Members["encode"], starlark.Tuple{value}, nil)
	if err != nil {
		return value.String()
	}
	return json.RawMessage(string(text.(starlark.String)))
}

func say(name string, args starlark.Tuple, kwargs []starlark.Tuple) error {
	named := map[string]any{}
	for _, pair := range kwargs {
		named[string(pair[0].(starlark.String))] = plain(pair[1])
	}
	positional := []any{}
	for _, arg := range args {
		positional = append(positional, plain(arg))
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"function": name, "args": positional, "kwargs": named})
}

func command(args ...string) (starlark.Value, error) {
	output := exec.Command(args[0], args[1:]...)
	output.Stderr = os.Stderr
	text, err := output.Output()
	if err != nil {
		return nil, fmt.Errorf("%v: %w", args, err)
	}
	return starlark.String(text), nil
}

func builtin(name string, do func(starlark.Tuple, []starlark.Tuple) (starlark.Value, error)) *starlark.Builtin {
	return starlark.NewBuiltin(name, func(_ *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		if err := say(name, args, kwargs); err != nil {
			return nil, err
		}
		return do(args, kwargs)
	})
}

func text(args starlark.Tuple) string {
	if len(args) == 0 {
		return ""
	}
	value, _ := starlark.AsString(args[0])
	return value
}

func helm(args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	// Tilt leaves out the pods of `helm test`.
	line := []string{"helm", "template", "--include-crds", "--skip-tests", "--kube-version", "1.34.0"}
	name := "chart"
	for _, pair := range kwargs {
		key := string(pair[0].(starlark.String))
		values := []starlark.Value{pair[1]}
		if list, ok := pair[1].(*starlark.List); ok {
			values = nil
			for i := range list.Len() {
				values = append(values, list.Index(i))
			}
		}
		for _, value := range values {
			word, _ := starlark.AsString(value)
			switch key {
			case "name":
				name = word
			case "namespace", "set", "values":
				line = append(line, "--"+key, word)
			default:
				return nil, fmt.Errorf("helm() has no argument %s here", key)
			}
		}
	}
	return command(append(line, name, text(args))...)
}

func main() {
	nothing := func(starlark.Tuple, []starlark.Tuple) (starlark.Value, error) { return starlark.None, nil }
	settings := starlark.NewDict(0)
	if len(os.Args) > 2 {
		var given map[string]any
		if err := json.Unmarshal([]byte(os.Args[2]), &given); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		for key, value := range given {
			var converted starlark.Value = starlark.String(fmt.Sprint(value))
			if truth, ok := value.(bool); ok {
				converted = starlark.Bool(truth)
			}
			_ = settings.SetKey(starlark.String(key), converted)
		}
	}
	config := starlark.StringDict{
		"parse": builtin("config.parse", func(starlark.Tuple, []starlark.Tuple) (starlark.Value, error) { return settings, nil }),
	}
	for _, name := range []string{"define_string", "define_bool", "define_string_list"} {
		config[name] = builtin("config."+name, nothing)
	}
	known := starlark.StringDict{
		"config": starlarkstruct.FromStringDict(starlarkstruct.Default, config),
		"local": builtin("local", func(args starlark.Tuple, _ []starlark.Tuple) (starlark.Value, error) {
			return command("sh", "-euc", text(args))
		}),
		"helm": builtin("helm", helm),
	}
	for _, name := range recorded {
		known[name] = builtin(name, nothing)
	}
	file, err := filepath.Abs(os.Args[1])
	if err == nil {
		err = os.Chdir(filepath.Dir(file))
	}
	if err == nil {
		_, err = starlark.ExecFileOptions(&syntax.FileOptions{TopLevelControl: true, GlobalReassign: true}, &starlark.Thread{Name: "Tiltfile"}, file, nil, known)
	}
	if err != nil {
		if trace, ok := err.(*starlark.EvalError); ok {
			err = fmt.Errorf("%s", trace.Backtrace())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
