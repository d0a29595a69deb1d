package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/schema"
)

func (c *command) schemaCommand() *cobra.Command {
	crd := false
	cmd := &cobra.Command{
		Use:   "schema [KIND]",
		Short: "Print the JSON Schema of manifests, or their Kubernetes CRDs",
		Long: "Print the JSON Schema of a kind, of definition files (definitions), or without KIND of everything a manifest file may hold.\n" +
			"With --crd print the CustomResourceDefinition of a kind, or of all.",
		Example:   "  kaspr schema > kaspr.schema.json\n  kaspr schema --crd | kubectl apply -f -",
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: append(manifest.Kinds(), schema.Definitions),
		RunE: func(_ *cobra.Command, args []string) error {
			kind := ""
			if len(args) > 0 {
				kind = kindNamed(args[0])
			}
			if !crd {
				return c.print(schema.JSON(kind))
			}
			kinds := []string{kind}
			if kind == "" {
				kinds = manifest.Kinds()
			}
			for i, kind := range kinds {
				if i > 0 {
					fmt.Fprintln(c.streams.Out, "---")
				}
				if err := c.print(schema.CRD(kind)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&crd, "crd", false, "print CustomResourceDefinitions instead")
	return cmd
}

// kindNamed finds the kind a user means: KasprAgent, kaspragent or agent. What it does not know it gives back.
func kindNamed(word string) string {
	for _, kind := range manifest.Kinds() {
		if strings.EqualFold(word, kind) || strings.EqualFold("Kaspr"+word, kind) {
			return kind
		}
	}
	return word
}

func (c *command) print(text []byte, err error) error {
	if err != nil {
		return err
	}
	_, err = c.streams.Out.Write(text)
	return err
}
