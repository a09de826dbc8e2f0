// One exchange between all ranks of a group over gloo's unbound buffers: what every collective here
// is made of.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include <gloo/rendezvous/context.h>
#include <gloo/transport/unbound_buffer.h>

#include "rust/cxx.h"

namespace palimpsest {

struct Rendezvous;
struct Span;
struct Outgoing;
enum class Outcome : std::uint8_t;

class Mesh {
public:
    Mesh(int rank, int size) : context_(std::make_shared<gloo::rendezvous::Context>(rank, size)) {}
    ~Mesh();

    // Connects to all other ranks; blocks until they are there or the timeout has passed. Throws.
    void connect(rust::Str address, const Rendezvous &store, std::int64_t timeout_ms);

    // Sends span r of `out` to rank r and receives recvs[r] of `in` from it, for every other rank
    // r. Throws when a rank is gone; the mesh is of no more use unless the outcome is Done.
    Outcome exchange(std::uint64_t slot, Outgoing out, rust::Slice<std::uint8_t> in,
                     rust::Slice<const Span> recvs, std::int64_t timeout_ms) const;

    // Ends an exchange under way on another thread, and every later one.
    void abort() const;

private:
    void close() const noexcept;

    std::shared_ptr<gloo::rendezvous::Context> context_;
    bool connected_ = false;
    mutable std::mutex mutex_;
    // The buffers of the exchange under way; guarded by the mutex.
    mutable gloo::transport::UnboundBuffer *in_ = nullptr;
    mutable gloo::transport::UnboundBuffer *out_ = nullptr;
    mutable bool aborted_ = false;
};

std::unique_ptr<Mesh> new_mesh(std::int32_t rank, std::int32_t size);

} // namespace palimpsest
