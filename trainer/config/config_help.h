#pragma once

#include <string>

namespace braid {

// What a key is for: its meaning, type, default, the keys below it if it is a section, and what other frameworks call
// it. `key` is "optimizer.lr", a name that stands in one place alone ("lr"), or a key of a list's elements
// ("data.sources[].name" or "data.sources.name").
// Errors: ConfigError with the nearest key, or what another framework's name is called here.
std::string explain_key(const std::string& key);

// What an unknown key "a.b" is answered with: where it stands, what it is called
// here, or what it may have been meant for.
std::string advice_on_unknown_key(const std::string& dotted);

// JSON schemas (draft 07) of a config and of a study, for editors that complete and check YAML.
std::string config_schema();
std::string study_schema();

}  // namespace braid
