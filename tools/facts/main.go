// Command facts writes src/api/facts/types.tsv: what the Kubernetes modules say about every type the API serves, as facts only.
//
//	cd tools/facts && go run . > ../../src/api/facts/types.tsv
//
// JSON names, protobuf numbers, pointers and omission rules come from struct tags by reflection; list types, keys, defaults
// and enums from the generated OpenAPI definitions. The Rust build reads the committed table and never runs this.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strings"

	admission "k8s.io/api/admission/v1"
	admissionbeta "k8s.io/api/admission/v1beta1"
	admissionregistration "k8s.io/api/admissionregistration/v1"
	apidiscovery "k8s.io/api/apidiscovery/v2"
	apidiscoverybeta "k8s.io/api/apidiscovery/v2beta1"
	apps "k8s.io/api/apps/v1"
	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
	autoscaling1 "k8s.io/api/autoscaling/v1"
	autoscaling2 "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	certificates "k8s.io/api/certificates/v1"
	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	events "k8s.io/api/events/v1"
	flowcontrol "k8s.io/api/flowcontrol/v1"
	imagepolicy "k8s.io/api/imagepolicy/v1alpha1"
	networking "k8s.io/api/networking/v1"
	node "k8s.io/api/node/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	resources "k8s.io/api/resource/v1"
	scheduling "k8s.io/api/scheduling/v1"
	storage "k8s.io/api/storage/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsbeta "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	everything "k8s.io/client-go/kubernetes/scheme"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistrationbeta "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1beta1"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kubernetes/pkg/generated/openapi"
)

// Types whose JSON or protobuf form is not what their fields say.
var leaves = map[string]string{
	"k8s.io/apimachinery/pkg/apis/meta/v1.Time":                                             "time",
	"k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime":                                        "microtime",
	"k8s.io/apimachinery/pkg/apis/meta/v1.Duration":                                         "duration",
	"k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1":                                         "fieldsv1",
	"k8s.io/apimachinery/pkg/api/resource.Quantity":                                         "quantity",
	"k8s.io/apimachinery/pkg/util/intstr.IntOrString":                                       "intorstring",
	"k8s.io/apimachinery/pkg/runtime.RawExtension":                                          "raw",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSON":                         "json",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaPropsOrBool":        "orbool",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaPropsOrArray":       "orarray",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaPropsOrStringArray": "orstrings",
}

// Lists of strings that are a message of their own in protobuf.
func isStrings(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String && t.PkgPath() != "" &&
		(t.Name() == "ExtraValue" || t.Name() == "Verbs")
}

type run struct {
	defs  map[string]spec.Schema
	kinds map[reflect.Type][]string
	seen  map[reflect.Type]bool
	queue []reflect.Type
}

func main() {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		admission.AddToScheme, admissionregistration.AddToScheme, apidiscovery.AddToScheme, apidiscoverybeta.AddToScheme, apps.AddToScheme,
		authentication.AddToScheme, authorization.AddToScheme, autoscaling1.AddToScheme, autoscaling2.AddToScheme, batch.AddToScheme,
		certificates.AddToScheme, coordination.AddToScheme, core.AddToScheme, discovery.AddToScheme, events.AddToScheme,
		flowcontrol.AddToScheme, networking.AddToScheme, node.AddToScheme, policy.AddToScheme, rbac.AddToScheme, resources.AddToScheme,
		scheduling.AddToScheme, storage.AddToScheme, apiextensions.AddToScheme, apiregistration.AddToScheme, meta.AddMetaToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	scheme.AddUnversionedTypes(schema.GroupVersion{Version: "v1"}, &meta.Status{}, &meta.APIVersions{}, &meta.APIGroupList{}, &meta.APIGroup{}, &meta.APIResourceList{})
	r := run{defs: map[string]spec.Schema{}, kinds: map[reflect.Type][]string{}, seen: map[reflect.Type]bool{}}
	ref := func(path string) spec.Ref { return spec.MustCreateRef(path) }
	for name, def := range openapi.GetOpenAPIDefinitions(common.ReferenceCallback(ref)) {
		r.defs[name] = def.Schema
	}
	for gvk, t := range scheme.AllKnownTypes() {
		if gvk.Version == runtime.APIVersionInternal || t.Name() == "InternalEvent" {
			continue
		}
		// The meta kinds are registered under every group; one entry is enough.
		if strings.HasSuffix(t.PkgPath(), "meta/v1") && gvk.Group != "" && gvk.Group != "meta.k8s.io" {
			continue
		}
		r.kinds[t] = append(r.kinds[t], gvk.GroupVersion().String()+" "+gvk.Kind)
		r.visit(t)
	}
	r.visit(reflect.TypeOf(version.Info{}))
	for len(r.queue) > 0 {
		t := r.queue[0]
		r.queue = r.queue[1:]
		for i := range t.NumField() {
			r.reach(t.Field(i).Type)
		}
	}
	r.print()
}

func (r *run) visit(t reflect.Type) {
	if !r.seen[t] && t.Kind() == reflect.Struct {
		r.seen[t] = true
		r.queue = append(r.queue, t)
	}
}

func (r *run) reach(t reflect.Type) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if _, leaf := leaves[full(t)]; t.Kind() != reflect.Struct || leaf {
		return
	}
	r.visit(t)
}

func full(t reflect.Type) string { return t.PkgPath() + "." + t.Name() }

// The OpenAPI model name, which is also the type's name in the table.
func model(t reflect.Type) string {
	if m, ok := reflect.New(t).Interface().(interface{ OpenAPIModelName() string }); ok {
		return m.OpenAPIModelName()
	}
	path := strings.SplitN(t.PkgPath(), "/", 2)
	host := strings.Split(path[0], ".")
	for i, j := 0, len(host)-1; i < j; i, j = i+1, j-1 {
		host[i], host[j] = host[j], host[i]
	}
	return strings.Join(host, ".") + "." + strings.ReplaceAll(path[1], "/", ".") + "." + t.Name()
}

func (r *run) print() {
	var types []reflect.Type
	for t := range r.seen {
		types = append(types, t)
	}
	sort.Slice(types, func(i, j int) bool { return model(types[i]) < model(types[j]) })
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	fmt.Fprintln(out, "# Types of the Kubernetes 1.36.3 API, written by tools/facts; never edited by hand. Columns, separated by tabs:")
	fmt.Fprintln(out, "# G  every group version upstream knows, served or not (joined by |)")
	fmt.Fprintln(out, "# T  name  Go name  kinds (apiVersion Kind, joined by |)  map type  unions (JSON)")
	fmt.Fprintln(out, "# F  JSON name  protobuf number (0: none)  shape ([] list, {} map) and kind  Go type")
	fmt.Fprintln(out, "#    flags (p pointer, o omitempty, z omitzero, i inline, r required by OpenAPI)")
	fmt.Fprintln(out, "#    list type  list map keys  patch merge key  patch strategy  map type  default (JSON)  enum (joined by |)")
	row(out, "G", strings.Join(groupVersions(), "|"))
	for _, t := range types {
		def := r.defs[model(t)]
		sort.Strings(r.kinds[t])
		unions := ""
		if u := def.Extensions["x-kubernetes-unions"]; u != nil {
			b, err := json.Marshal(u)
			if err != nil {
				panic(err)
			}
			unions = string(b)
		}
		row(out, "T", model(t), t.Name(), strings.Join(r.kinds[t], "|"), text(def.Extensions["x-kubernetes-map-type"]), unions)
		for i := range t.NumField() {
			r.field(out, t.Field(i), def)
		}
	}
}

// Every group version with options of its own: DeleteOptions and WatchEvent are published under all of them.
func groupVersions() []string {
	scheme := everything.Scheme
	for _, add := range []func(*runtime.Scheme) error{
		admission.AddToScheme, admissionbeta.AddToScheme, apiextensions.AddToScheme, apiextensionsbeta.AddToScheme,
		apiregistration.AddToScheme, apiregistrationbeta.AddToScheme, imagepolicy.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	var all []string
	for gvk := range scheme.AllKnownTypes() {
		if gvk.Kind == "DeleteOptions" && gvk.Version != runtime.APIVersionInternal {
			all = append(all, gvk.GroupVersion().String())
		}
	}
	sort.Strings(all)
	return all
}

func row(out *bufio.Writer, cells ...string) {
	fmt.Fprintln(out, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case []string:
		return strings.Join(v, ",")
	case []any:
		var parts []string
		for _, p := range v {
			parts = append(parts, fmt.Sprint(p))
		}
		return strings.Join(parts, ",")
	}
	return fmt.Sprint(v)
}

func (r *run) field(out *bufio.Writer, f reflect.StructField, def spec.Schema) {
	if f.PkgPath != "" || f.Tag.Get("json") == "-" {
		return
	}
	name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
	flags := ""
	t := f.Type
	goType := t
	if t.Kind() == reflect.Pointer {
		flags += "p"
		t = t.Elem()
		goType = t
	}
	for _, option := range strings.Split(rest, ",") {
		switch option {
		case "omitempty":
			flags += "o"
		case "omitzero":
			flags += "z"
		case "", "inline":
		default:
			panic(f.Name + ": json option " + option)
		}
	}
	if f.Anonymous && name == "" {
		flags += "i"
		name = f.Name
	}
	if name == "" {
		name = f.Name
	}
	for _, required := range def.Required {
		if required == name {
			flags += "r"
		}
	}
	number := "0"
	if tag := f.Tag.Get("protobuf"); tag != "" && tag != "-" {
		number = strings.Split(tag, ",")[1]
	}
	property := def.Properties[name]
	enum := ""
	var values []string
	source := property.Enum
	if property.Items != nil && property.Items.Schema != nil && len(source) == 0 {
		source = property.Items.Schema.Enum
	}
	if property.AdditionalProperties != nil && property.AdditionalProperties.Schema != nil && len(source) == 0 {
		source = property.AdditionalProperties.Schema.Enum
	}
	for _, v := range source {
		values = append(values, fmt.Sprint(v))
	}
	enum = strings.Join(values, "|")
	value := ""
	if property.Default != nil {
		b, err := json.Marshal(property.Default)
		if err != nil {
			panic(err)
		}
		value = string(b)
	}
	strategy, mergeKey := f.Tag.Get("patchStrategy"), f.Tag.Get("patchMergeKey")
	row(out, "F", name, number, shape(t), goType.String(), flags,
		text(property.Extensions["x-kubernetes-list-type"]), text(property.Extensions["x-kubernetes-list-map-keys"]),
		mergeKey, strategy, text(property.Extensions["x-kubernetes-map-type"]), value, enum)
}

func shape(t reflect.Type) string {
	if leaf, ok := leaves[full(t)]; ok {
		return leaf
	}
	if isStrings(t) {
		return "strings"
	}
	switch t.Kind() {
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		if t.Elem().Kind() == reflect.Pointer {
			panic("list of pointers: " + t.String())
		}
		return "[]" + shape(t.Elem())
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			panic("map key: " + t.String())
		}
		return "{}" + shape(t.Elem())
	case reflect.Struct:
		return "=" + model(t)
	case reflect.Interface:
		return "any"
	case reflect.Bool, reflect.Int32, reflect.Int64, reflect.Float64, reflect.String:
		return t.Kind().String()
	}
	panic("kind of " + t.String())
}
