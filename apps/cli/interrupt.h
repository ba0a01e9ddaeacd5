// Ctrl-C: the first asks the running task to stop cleanly, the second leaves at once.
#pragma once

namespace quipu::cli {

// Installs handlers for SIGINT and SIGTERM. The first signal sets the flag below; a second one before the flag is
// cleared ends the program with exit code 130. Reads are not restarted, so that a line editor notices.
void install_interrupt_handlers();

const volatile bool* interrupt_flag();
inline bool interrupted() { return *interrupt_flag(); }
void clear_interrupt();
// Readable from the first signal until clear_interrupt(): for poll() beside a terminal.
int interrupt_descriptor();

}  // namespace quipu::cli
