#include "palimpsest-collective/src/gloo/shim.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>
#include <vector>

#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>

#include "palimpsest-collective/src/gloo.rs.h"

namespace palimpsest {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Gloo's store interface over ours.
class Store : public gloo::rendezvous::Store {
public:
    Store(const Rendezvous &rendezvous, Clock::time_point deadline)
        : rendezvous_(rendezvous), deadline_(deadline) {}

    void set(const std::string &key, const std::vector<char> &data) override {
        const auto *bytes = reinterpret_cast<const std::uint8_t *>(data.data());
        rendezvous_.set(key, rust::Slice<const std::uint8_t>(bytes, data.size()));
    }

    std::vector<char> get(const std::string &key) override {
        const auto left =
            std::chrono::duration_cast<milliseconds>(deadline_ - Clock::now()).count();
        const rust::Vec<std::uint8_t> value = rendezvous_.get(key, left);
        return std::vector<char>(value.begin(), value.end());
    }

    void wait(const std::vector<std::string> &keys) override {
        for (const auto &key : keys) get(key);
    }

    void wait(const std::vector<std::string> &keys, const milliseconds &) override { wait(keys); }

private:
    const Rendezvous &rendezvous_;
    const Clock::time_point deadline_;
};

milliseconds until(Clock::time_point deadline) {
    // Gloo takes a negative timeout for its own default, and zero for none at all.
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
    return std::max(milliseconds(1), left);
}

} // namespace

Mesh::~Mesh() {
    close();
}

void Mesh::connect(rust::Str address, const Rendezvous &store, std::int64_t timeout_ms) {
    const auto deadline = Clock::now() + milliseconds(timeout_ms);
    gloo::transport::tcp::attr attr;
    attr.hostname = std::string(address);
    std::shared_ptr<gloo::transport::Device> device = gloo::transport::tcp::CreateDevice(attr);
    Store adapter(store, deadline);
    context_->setTimeout(milliseconds(timeout_ms));
    context_->connectFullMesh(adapter, device);
    connected_ = true;
}

Outcome Mesh::exchange(std::uint64_t slot, Outgoing out, rust::Slice<std::uint8_t> in,
                       rust::Slice<const Span> recvs, std::int64_t timeout_ms) const {
    const auto deadline = Clock::now() + milliseconds(timeout_ms);
    // Gloo only reads from a buffer that it sends.
    auto *bytes = const_cast<std::uint8_t *>(out.bytes.data());
    auto source = context_->createUnboundBuffer(bytes, out.bytes.size());
    auto target = context_->createUnboundBuffer(in.data(), in.size());
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (aborted_) return Outcome::Aborted;
        in_ = target.get();
        out_ = source.get();
    }
    bool done = true;
    try {
        for (int peer = 0; peer < context_->size; peer++) {
            if (peer != context_->rank)
                target->recv(peer, slot, recvs[peer].start, recvs[peer].len);
        }
        // Every rank starts with its neighbour, so that not all of them send to the same one.
        for (int step = 1; step < context_->size; step++) {
            const int peer = (context_->rank + step) % context_->size;
            source->send(peer, slot, out.spans[peer].start, out.spans[peer].len);
        }
        for (int step = 1; done && step < context_->size; step++) {
            done = target->waitRecv(until(deadline));
        }
        for (int step = 1; done && step < context_->size; step++) {
            done = source->waitSend(until(deadline));
        }
    } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        in_ = out_ = nullptr;
        close();
        if (aborted_) return Outcome::Aborted;
        if (Clock::now() >= deadline) return Outcome::Late;
        throw;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    in_ = out_ = nullptr;
    if (done) return Outcome::Done;
    close();
    return Outcome::Aborted;
}

void Mesh::abort() const {
    std::lock_guard<std::mutex> lock(mutex_);
    aborted_ = true;
    if (in_ != nullptr) in_->abortWaitRecv();
    if (out_ != nullptr) out_->abortWaitSend();
}

// No transfer goes on into memory of the caller after this.
void Mesh::close() const noexcept {
    if (!connected_) return;
    try {
        context_->closeConnections();
    } catch (const std::exception &) {
        // A connection that fails to close is closed.
    }
}

std::unique_ptr<Mesh> new_mesh(std::int32_t rank, std::int32_t size) {
    return std::make_unique<Mesh>(rank, size);
}

} // namespace palimpsest
