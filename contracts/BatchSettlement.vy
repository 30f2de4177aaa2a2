#pragma version 0.4.3
#pragma evm-version cancun
# A double of x402's batch-settlement escrow: channels are filled once, drawn on by signed vouchers, claimed in
# batches, paid out to their receivers in one sum, and what is left goes back to the payer.

from ethereum.ercs import IERC20

struct ChannelConfig:
    payer: address
    payerAuthorizer: address
    receiver: address
    receiverAuthorizer: address
    token: address
    withdrawDelay: uint40
    salt: bytes32

struct Voucher:
    channel: ChannelConfig
    maxClaimableAmount: uint128

struct VoucherClaim:
    voucher: Voucher
    signature: Bytes[65]
    totalClaimed: uint128

struct Channel:
    balance: uint128  # deposited and not yet given back: what was claimed is part of it
    totalClaimed: uint128

struct Withdrawal:
    amount: uint128
    initiatedAt: uint40

struct Receiver:
    totalClaimed: uint128
    totalSettled: uint128

interface Collector:
    def collect(
        payer: address, token: address, amount: uint256, channel_id: bytes32, data: Bytes[1024]
    ): nonpayable

event Settled:
    receiver: indexed(address)
    token: indexed(address)
    sender: indexed(address)
    amount: uint128

event Deposited:
    channelId: indexed(bytes32)
    amount: uint128

event Claimed:
    channelId: indexed(bytes32)
    totalClaimed: uint128

event Refunded:
    channelId: indexed(bytes32)
    amount: uint128

CLAIMS_MAX: constant(uint256) = 100
WITHDRAW_DELAY_MIN: constant(uint40) = 900
WITHDRAW_DELAY_MAX: constant(uint40) = 2_592_000
DOMAIN_TYPEHASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
CHANNEL_TYPEHASH: constant(bytes32) = keccak256(
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
)
VOUCHER_TYPEHASH: constant(bytes32) = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
REFUND_TYPEHASH: constant(bytes32) = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)")
CLAIM_ENTRY_TYPEHASH: constant(bytes32) = keccak256(
    "ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)
CLAIM_BATCH_TYPEHASH: constant(bytes32) = keccak256(
    "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)

channels: public(HashMap[bytes32, Channel])
pendingWithdrawals: public(HashMap[bytes32, Withdrawal])
receivers: public(HashMap[address, HashMap[address, Receiver]])
refundNonce: public(HashMap[bytes32, uint256])


@internal
@view
def _digest(struct_hash: bytes32) -> bytes32:
    domain: bytes32 = keccak256(
        abi_encode(DOMAIN_TYPEHASH, keccak256("x402 Batch Settlement"), keccak256("1"), chain.id, self)
    )
    return keccak256(concat(x"1901", domain, struct_hash))


@internal
@pure
def _recover(digest: bytes32, signature: Bytes[65]) -> address:
    assert len(signature) == 65, "InvalidSignature"
    return ecrecover(
        digest,
        convert(convert(slice(signature, 64, 1), uint256), uint8),
        convert(slice(signature, 0, 32), bytes32),
        convert(slice(signature, 32, 32), bytes32),
    )


@internal
@view
def _channel_id(config: ChannelConfig) -> bytes32:
    return self._digest(keccak256(abi_encode(CHANNEL_TYPEHASH, config)))


@internal
@view
def _voucher_digest(channel_id: bytes32, amount: uint128) -> bytes32:
    return self._digest(keccak256(abi_encode(VOUCHER_TYPEHASH, channel_id, amount)))


@internal
@view
def _refund_digest(channel_id: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    return self._digest(keccak256(abi_encode(REFUND_TYPEHASH, channel_id, nonce, amount)))


@internal
@view
def _claims_digest(claims: DynArray[VoucherClaim, CLAIMS_MAX]) -> bytes32:
    entries: DynArray[bytes32, CLAIMS_MAX] = []
    for claim: VoucherClaim in claims:
        entry: Bytes[128] = abi_encode(
            CLAIM_ENTRY_TYPEHASH,
            self._channel_id(claim.voucher.channel),
            claim.voucher.maxClaimableAmount,
            claim.totalClaimed,
        )
        entries.append(keccak256(entry))
    # EIP-712 hashes an array's entries alone, without the offset and the length that the ABI puts before
    packed: Bytes[64 + 32 * CLAIMS_MAX] = slice(abi_encode(entries), 64, 32 * len(entries))
    return self._digest(keccak256(abi_encode(CLAIM_BATCH_TYPEHASH, keccak256(packed))))


@external
@view
def getChannelId(config: ChannelConfig) -> bytes32:
    return self._channel_id(config)


@external
@view
def getVoucherDigest(channel_id: bytes32, amount: uint128) -> bytes32:
    return self._voucher_digest(channel_id, amount)


@external
@view
def getRefundDigest(channel_id: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    return self._refund_digest(channel_id, nonce, amount)


@external
@view
def getClaimBatchDigest(claims: DynArray[VoucherClaim, CLAIMS_MAX]) -> bytes32:
    return self._claims_digest(claims)


@external
def multicall(data: DynArray[Bytes[4096], 4]) -> DynArray[Bytes[64], 4]:
    results: DynArray[Bytes[64], 4] = []
    for call: Bytes[4096] in data:
        results.append(raw_call(self, call, max_outsize=64, is_delegate_call=True))
    return results


@external
def deposit(config: ChannelConfig, amount: uint128, collector: address, data: Bytes[1024]):
    assert amount != 0, "ZeroDeposit"
    assert config.payer != empty(address) and config.receiver != empty(address), "InvalidChannel"
    assert config.withdrawDelay >= WITHDRAW_DELAY_MIN, "WithdrawDelayOutOfRange"
    assert config.withdrawDelay <= WITHDRAW_DELAY_MAX, "WithdrawDelayOutOfRange"
    channel_id: bytes32 = self._channel_id(config)
    before: uint256 = staticcall IERC20(config.token).balanceOf(self)
    extcall Collector(collector).collect(config.payer, config.token, convert(amount, uint256), channel_id, data)
    after: uint256 = staticcall IERC20(config.token).balanceOf(self)
    assert after == before + convert(amount, uint256), "DepositCollectionFailed"
    self.channels[channel_id].balance += amount
    self.pendingWithdrawals[channel_id] = empty(Withdrawal)
    log Deposited(channelId=channel_id, amount=amount)


@internal
@view
def _check_voucher(config: ChannelConfig, channel_id: bytes32, amount: uint128, signature: Bytes[65]):
    signer: address = self._recover(self._voucher_digest(channel_id, amount), signature)
    expected: address = config.payerAuthorizer
    if expected == empty(address):
        expected = config.payer
    assert signer != empty(address) and signer == expected, "InvalidSignature"


@internal
def _claim(claim: VoucherClaim):
    config: ChannelConfig = claim.voucher.channel
    channel_id: bytes32 = self._channel_id(config)
    channel: Channel = self.channels[channel_id]
    if claim.totalClaimed <= channel.totalClaimed:
        return  # already claimed as far: a batch is not spoilt by one that another batch had
    assert claim.totalClaimed <= claim.voucher.maxClaimableAmount, "ClaimExceedsVoucher"
    assert claim.totalClaimed <= channel.balance, "ClaimExceedsBalance"
    self._check_voucher(config, channel_id, claim.voucher.maxClaimableAmount, claim.signature)
    self.receivers[config.receiver][config.token].totalClaimed += claim.totalClaimed - channel.totalClaimed
    self.channels[channel_id].totalClaimed = claim.totalClaimed
    log Claimed(channelId=channel_id, totalClaimed=claim.totalClaimed)


@external
def claim(claims: DynArray[VoucherClaim, CLAIMS_MAX]):
    for claim: VoucherClaim in claims:
        assert msg.sender == claim.voucher.channel.receiverAuthorizer, "NotReceiverAuthorizer"
        self._claim(claim)


@external
def claimWithSignature(claims: DynArray[VoucherClaim, CLAIMS_MAX], signature: Bytes[65]):
    authorizer: address = self._recover(self._claims_digest(claims), signature)
    assert authorizer != empty(address), "InvalidSignature"
    for claim: VoucherClaim in claims:
        assert authorizer == claim.voucher.channel.receiverAuthorizer, "NotReceiverAuthorizer"
        self._claim(claim)


@external
def settle(receiver: address, token: address):
    account: Receiver = self.receivers[receiver][token]
    amount: uint128 = account.totalClaimed - account.totalSettled
    assert amount != 0, "NothingToSettle"
    self.receivers[receiver][token].totalSettled = account.totalClaimed
    log Settled(receiver=receiver, token=token, sender=msg.sender, amount=amount)
    assert extcall IERC20(token).transfer(receiver, convert(amount, uint256))


@internal
def _refund(config: ChannelConfig, channel_id: bytes32, amount: uint128):
    channel: Channel = self.channels[channel_id]
    given: uint128 = min(amount, channel.balance - channel.totalClaimed)
    assert given != 0, "NothingToRefund"
    self.channels[channel_id].balance = channel.balance - given
    self.pendingWithdrawals[channel_id] = empty(Withdrawal)
    log Refunded(channelId=channel_id, amount=given)
    assert extcall IERC20(config.token).transfer(config.payer, convert(given, uint256))


@external
def refund(config: ChannelConfig, amount: uint128):
    assert msg.sender == config.receiverAuthorizer, "NotReceiverAuthorizer"
    self._refund(config, self._channel_id(config), amount)


@external
def refundWithSignature(config: ChannelConfig, amount: uint128, nonce: uint256, signature: Bytes[65]):
    channel_id: bytes32 = self._channel_id(config)
    assert nonce == self.refundNonce[channel_id], "InvalidNonce"
    authorizer: address = self._recover(self._refund_digest(channel_id, nonce, amount), signature)
    assert authorizer != empty(address) and authorizer == config.receiverAuthorizer, "InvalidSignature"
    self.refundNonce[channel_id] = nonce + 1
    self._refund(config, channel_id, amount)


@external
def initiateWithdraw(config: ChannelConfig, amount: uint128):
    assert msg.sender in [config.payer, config.payerAuthorizer], "NotPayer"
    channel_id: bytes32 = self._channel_id(config)
    assert self.pendingWithdrawals[channel_id].initiatedAt == 0, "WithdrawalPending"
    assert amount != 0, "ZeroWithdrawal"
    self.pendingWithdrawals[channel_id] = Withdrawal(
        amount=amount, initiatedAt=convert(block.timestamp, uint40)
    )


@external
def finalizeWithdraw(config: ChannelConfig):
    channel_id: bytes32 = self._channel_id(config)
    pending: Withdrawal = self.pendingWithdrawals[channel_id]
    assert pending.initiatedAt != 0, "NoWithdrawal"
    due: uint256 = convert(pending.initiatedAt, uint256) + convert(config.withdrawDelay, uint256)
    assert block.timestamp >= due, "WithdrawalTooEarly"
    self._refund(config, channel_id, pending.amount)
